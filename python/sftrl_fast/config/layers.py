"""From presets, TOML files and the command line to one resolved, checked set of keys."""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sftrl_fast.config.sections import Config, Section
from sftrl_fast.core import UserError


def preset_for(model: str) -> str | None:
    """The shipped preset that is made for a model, None for a model with none or several."""
    made = [name for name in presets() if load_config(preset=name).model.name == model]
    return made[0] if len(made) == 1 else None


def presets() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("sftrl_fast") / "configs"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_config(
    *, preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The resolved settings of a training run.

    A table in a file is laid over the defaults key by key; only an open table (``task.eval``,
    ``task.options``) takes the place of its default. ``overrides`` maps dotted keys to values of the key's type,
    or strings that can be read as one; they come last and may add to an open table (``task.eval.extra``).
    Raises ``UserError`` naming the key, the value and what would be right.
    """
    layers: list[Mapping[str, Any]] = []
    if preset is not None:
        if preset not in presets():
            raise UserError(f"preset={preset!r} is unknown; choose one of {', '.join(presets())}")
        text = (resources.files("sftrl_fast") / "configs" / f"{preset}.toml").read_text("utf-8")
        layers.append(tomllib.loads(text))
    if file is not None:
        layers.append(_read_toml(file))
    return resolve(Config, layers, overrides or {})


S = TypeVar("S", bound=Section)


def resolve(kind: type[S], layers: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]) -> S:
    """The defaults of ``kind`` under ``layers`` under ``overrides``, checked; see :func:`load_config`."""
    data = kind().model_dump()
    for layer in layers:
        data = _overlay(kind, data, layer)
    for key, value in overrides.items():
        data = _merge(data, _nest(key, value))
    try:
        return kind.model_validate(data)
    except ValidationError as fault:
        raise UserError(_explain(kind, fault)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as fault:
        raise UserError(f"config={str(file)!r} cannot be read: {fault.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UserError(f"config={str(file)!r} is not valid TOML: {fault}") from None


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _overlay(kind: type[Section], base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, descending into sections only."""
    merged = dict(base)
    for key, value in top.items():
        inner = subsection(kind, key)
        merged[key] = _overlay(inner, base[key], value) if inner and isinstance(value, Mapping) else value
    return merged


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, descending into every table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def subsection(kind: type[Section], key: str) -> type[Section] | None:
    """The class of the section that ``kind`` holds under ``key``; None for a value or an unknown key."""
    field = kind.model_fields.get(key)
    annotation = None if field is None else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _explain(kind: type[Section], fault: ValidationError) -> str:
    """One line: the first fault of each key, since a value that fits no member of a union has several."""
    lines: dict[str, str] = {}
    for error in fault.errors(include_url=False):
        section, depth = kind, 0
        while depth < len(error["loc"]) and (inner := subsection(section, str(error["loc"][depth]))):
            section, depth = inner, depth + 1
        union = error["type"].endswith("_type") and error["loc"][-1] in ("str", "int", "float", "bool")
        key = ".".join(str(part) for part in (error["loc"][:-1] if union else error["loc"])) or "settings"
        if error["type"] == "extra_forbidden":
            line = f"{key} is not a key; the keys there are {', '.join(section.model_fields)}"
        else:
            reason = "must be a string, a number or a boolean" if union else _plain(error["msg"])
            line = f"{key}={reprlib.repr(error['input'])}: {reason}"
        lines.setdefault(key, line)
    return "; ".join(lines.values())


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
