"""Low-rank adapters by peft (LoRA, Hu et al., arXiv 2106.09685): layers whose weight is W + alpha / rank B A.

Engine and native training see an adapter as that sum, rounded once to the type of W, so the policy that is trained is
the one that is sampled. A and B are float32 whatever W is.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sftrl_fast.config import LoraConfig
from sftrl_fast.core import UserError
from sftrl_fast.tasks.seeding import digest

NAME = "default"
"""What peft calls an adapter when nobody names it."""
FOLDER = "adapter"
"""Where a saved model keeps its adapter for itself, in peft's own form."""


def add_lora(model: PreTrainedModel, settings: LoraConfig) -> None:
    """Give adapters to the model's linear layers, and freeze all else. They change nothing yet: B is 0.

    Layers that are frozen already get none, nor does the output embedding. ``UserError`` without peft, and for targets
    that name no layer.
    """
    try:
        peft: Any = importlib.import_module("peft")
        functional: Any = importlib.import_module("peft.functional")
    except ImportError:
        raise UserError(
            f"lora.rank={settings.rank} needs peft: pip install 'sftrl-fast[lora]', or take 0 for full fine-tuning"
        ) from None
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad
    }
    ends = {name.rpartition(".")[2] for name in linear}
    if unknown := set(settings.targets) - ends:
        raise UserError(
            f"lora.targets={list(settings.targets)}: no linear layer to train is called {sorted(unknown)[0]!r}; "
            f"there are {', '.join(sorted(ends))}"
        )
    wanted = settings.targets or ends
    names = [name for name in linear if name.rpartition(".")[2] in wanted]
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names)
    with torch.random.fork_rng():
        torch.manual_seed(digest("lora"))
        peft.inject_adapter_in_model(config, model)
    functional.cast_adapter_dtype(model, NAME)


def weight(layer: nn.Module) -> Tensor:
    """A linear layer's ``[N, K]``, its adapter included; differentiable in what is trained of it."""
    own: Any = layer
    if not _adapted(layer):
        return cast(Tensor, own.weight)
    base: Tensor = own.base_layer.weight
    return (base + own.get_delta_weight(NAME)).to(base.dtype)


def why_not(layer: nn.Module) -> str:
    """What keeps :func:`weight` from standing for the layer; the empty string if nothing does."""
    base: Any = cast(Any, layer).base_layer if _adapted(layer) else layer
    if type(base) is not nn.Linear:
        return f"a {type(layer).__name__}"
    if base is layer:
        return ""
    own: Any = layer
    if own.merged or own.disable_adapters or list(own.active_adapters) != [NAME]:
        return "adapted otherwise than by one LoRA that is in use"
    if own.lora_variant or own.lora_bias[NAME] or not isinstance(own.lora_dropout[NAME], nn.Identity):
        return "adapted by a LoRA with dropout, with a bias, or of a variant"
    return ""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name in a model is an adapter's and not the model's own."""
    return ".lora_" in name


def is_adapted(model: nn.Module) -> bool:
    return any(_adapted(module) for module in model.modules())


@torch.no_grad()
def merged(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the model without adapters that computes the same."""
    adapted = {name: module for name, module in model.named_modules() if _adapted(module)}
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter(name)
    }
    return state | {f"{name}.weight": weight(module) for name, module in adapted.items()}


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter alone, as ``PeftModel.from_pretrained`` reads it."""
    state = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if is_adapter(name)
    }
    cast(Any, model).peft_config[NAME].save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors")


def _adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "base_layer")
