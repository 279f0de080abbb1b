"""Settings on the command line: ``--section.key value`` from words to values, and the help that lists every
key.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import tomllib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from sftrl_fast.config import Config, Section, load_config, preset_for, presets, subsection
from sftrl_fast.core import UserError

HELP_WIDTH = 100


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config`` or ``--preset``, and the help of every key of :class:`Config`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="settings in a TOML file")
    source.add_argument(
        "--preset",
        metavar="NAME",
        help=f"shipped settings: {', '.join(presets())} (default: the one made for the model)",
    )
    add_settings_help(parser, Config)


def add_settings_help(parser: argparse.ArgumentParser, kind: type[Section]) -> None:
    # The list of keys is laid out already, so nothing is to be filled again by argparse.
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", HELP_WIDTH)
    parser.epilog = describe(kind)


def config_from(args: argparse.Namespace, overrides: dict[str, Any]) -> tuple[Config, str]:
    """The settings of a command line, and the name of the preset or file they started from.

    A model that is named without a preset gets its own, or the plain defaults: what suits the smallest model
    would cut another's answers short.
    """
    if args.config is not None:
        return load_config(file=args.config, overrides=overrides), args.config.stem
    preset = args.preset or preset_for(str(overrides.get("model.name", "tiny")))
    return load_config(preset=preset, overrides=overrides), preset or "custom"


def output_file(text: str) -> Path:
    """A path for argparse that a file can be written to, so that what takes long does not fail at its end."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: there is no folder {str(path.parent)!r}"
        )
    return path


def parse_overrides(kind: type[Section], words: Sequence[str]) -> dict[str, Any]:
    """``--key value`` and ``--key=value`` pairs as dotted keys and values.

    A value is read as TOML if it is TOML, else taken as a string; a tuple needs no brackets (``--seeds
    0,1,2``). ``UserError`` for a word that is no key, an unknown key, a missing value, or a key that comes
    twice.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"unexpected argument {word!r}; settings are written --section.key VALUE")
        key, equals, value = word[2:].partition("=")
        field = _find(kind, key)
        if not equals:
            if not rest:
                raise UserError(f"--{key} needs a value")
            value = rest.pop(0)
        if key in overrides:
            raise UserError(f"--{key} is given twice")
        overrides[key] = _value(field, value)
    return overrides


def _find(kind: type[Section], key: str) -> Any:
    """The type that ``key`` takes. Here and not later, so that ``--ouput x`` is told from a setting."""
    section, parts = kind, key.split(".")
    for place, part in enumerate(parts):
        if part not in section.model_fields:
            where = ".".join(parts[:place])
            known = ", ".join(f"--{where + '.' * bool(where)}{name}" for name in section.model_fields)
            raise UserError(f"unknown setting --{key}; known are {known}")
        inner = subsection(section, part)
        if inner is None:
            annotation = section.model_fields[part].annotation
            # Below a value only an open table has keys, and those are free.
            return _table_value(annotation) if parts[place + 1 :] else annotation
        section = inner
    return section


def _table_value(annotation: Any) -> Any:
    return get_args(annotation)[1] if get_origin(annotation) is dict else annotation


def _value(annotation: Any, text: str) -> Any:
    if get_origin(annotation) is tuple and not text.lstrip().startswith("["):
        text = f"[{text}]"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # A name that happens to look like a number, such as a folder called 2024, stays a name.
    return text if _takes_strings_only(annotation) and not isinstance(value, str) else value


def _takes_strings_only(annotation: Any) -> bool:
    return annotation is str or get_origin(annotation) is Literal


def describe(kind: type[Section]) -> str:
    """Every key with its type, range, default and meaning, a paragraph each, in sections."""
    lines = ["settings (--section.key VALUE; [type, default]):"]
    for title, keys in _sections(kind, ""):
        lines += ["", f"  {title}"] if title else [""]
        for key, field, default in keys:
            head = f"  --{key}  [{_type(field)}, default {_shown(default)}]"
            lines += textwrap.wrap(head, HELP_WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)
            lines += textwrap.wrap(
                field.description or "", HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


def _sections(kind: type[Section], prefix: str) -> Iterator[tuple[str, list[tuple[str, FieldInfo, Any]]]]:
    """Title and values of ``kind``, then of each section below it."""
    yield from _walk(kind(), prefix)


def _walk(section: Section, prefix: str) -> Iterator[tuple[str, list[tuple[str, FieldInfo, Any]]]]:
    kind = type(section)
    keys = [
        (prefix + name, field, getattr(section, name))
        for name, field in kind.model_fields.items()
        if subsection(kind, name) is None
    ]
    if keys:
        yield prefix.rstrip("."), keys
    for name in kind.model_fields:
        if subsection(kind, name) is not None:
            yield from _walk(getattr(section, name), f"{prefix}{name}.")


_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _type(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(part, name)}"
        for part in field.metadata
        for name, sign in _LIMITS.items()
        if getattr(part, name, None) is not None
    ]
    return " ".join([_type_name(field.annotation), *([" and ".join(limits)] if limits else [])])


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(inner)
    if origin is tuple:
        return ",".join("..." if part is Ellipsis else _type_name(part) for part in inner)
    if origin is dict:
        return f"table of {_type_name(inner[1])}"
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(part) for part in inner if part is not types.NoneType)
    return {str: "string", bool: "true | false", int: "int", float: "float"}[annotation]


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    if isinstance(default, tuple):
        return ",".join(_shown(part) for part in default)
    if isinstance(default, dict):
        return "{" + ", ".join(f"{key} = {_shown(value)}" for key, value in default.items()) + "}"
    if isinstance(default, float):
        return f"{default:g}"
    return default if isinstance(default, str) and default else json.dumps(default)
