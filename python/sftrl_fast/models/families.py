"""Which models the engine's own forward pass covers, and why it does not cover another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    MllamaForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from sftrl_fast.models import adapters

SEEING = (MllamaForConditionalGeneration,)
"""Those with layers that attend to pictures."""
FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, *SEEING)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose angles depend on the position alone; `dynamic` and `longrope` change with the sequence's length."""


def why_not(model: nn.Module) -> str:
    """What :class:`~sftrl_fast.models.decoder.Decoder` lacks for ``model``; the empty string if it covers it."""
    if type(model) not in FAMILIES:
        names = ", ".join(family.__name__ for family in FAMILIES)
        return f"a {type(model).__name__} is none of {names}"
    causal = cast(Any, model)
    return next((reason for reason in _reasons(causal.config.get_text_config(), causal) if reason), "")


def body(model: nn.Module) -> Any:
    """The decoder of a model of :data:`FAMILIES`: embedding, layers, last norm."""
    inner = cast(Any, model).model
    return inner.language_model if isinstance(model, SEEING) else inner


def crosses(layer: nn.Module) -> bool:
    """Whether a decoder layer attends to pictures and not to tokens."""
    return hasattr(layer, "cross_attn")


def _reasons(config: Any, model: Any) -> Iterator[str]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    if window and "sliding_attention" in kinds and window < config.max_position_embeddings:
        yield f"its attention slides over a window of {window} tokens"
    if odd := set(kinds) - {"full_attention", "sliding_attention"}:
        yield f"it has layers of type {', '.join(sorted(odd))}"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        yield f"its rotary embedding is of type {rope['rope_type']!r}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "only a part of each head is rotated"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act!r}"
    modules = list(_modules(model))
    yield from _odd_modules(modules)
    weights = [
        (f"{name}.{own}", p)
        for name, module in modules
        for own, p in module._parameters.items()
        if p is not None
    ]
    kinds = {(p.dtype, p.device) for name, p in weights if not adapters.is_adapter(name)}
    if len(kinds) > 1:
        yield f"its weights are of several types or devices: {', '.join(sorted(map(str, kinds)))}"
    if any(p.device.type == "meta" for _, p in weights):
        yield "its weights are not on this machine"


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``named_modules``, but for the order and that a module which stands in two places comes twice: less work, for
    this is asked ahead of every batch of requests."""
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        yield name, module
        inside = f"{name}." if name else ""
        waiting += [(inside + part, child) for part, child in module._modules.items() if child is not None]


def _odd_modules(modules: list[tuple[str, nn.Module]]) -> Iterator[str]:
    """Layers that were exchanged, as quantisers do, or that something was hooked onto."""
    for name, module in modules:
        plain = nn.Embedding if name.endswith("embed_tokens") else nn.Linear
        if name.endswith(("lm_head", "embed_tokens")) and type(module) is not plain:
            yield f"{name} is a {type(module).__name__}"
        if name.endswith("_proj") and (reason := adapters.why_not(module)):
            yield f"{name} is {reason}"
        if module._forward_hooks or module._forward_pre_hooks:
            yield f"{name or 'the model'} has forward hooks"
