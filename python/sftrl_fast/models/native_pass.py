"""Training on the engine's own kernels: hidden states of packed rows with the bits that sampling saw, and gradients.

In bf16 two codes agree to the bit or differ by all of the rounding noise, so the policy that is trained is the one that
was sampled only if both run the same kernels in the same order: the rows of :mod:`sftrl_fast.models.decoder`'s ops are
the same bits in any company, and packed attention sums over a prompt and what follows it as the cache does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sftrl_fast.models import families
from sftrl_fast.models.adapters import weight
from sftrl_fast.models.decoder_weights import DecoderWeights, LayerWeights
from sftrl_fast.models.native_functions import GatedProjection, Norm, NormedProjection, Projected, Rotated
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.ops.attention import PackedRows, packed_attention
from sftrl_fast.ops.cpp.packed_attention import HEAD_MULTIPLE
from sftrl_fast.ops.dispatch import choose

OPS = (
    "linear", "rms_norm", "rms_norm_backward", "rope_cache", "packed_attention", "cached_attention", "swiglu",
    "swiglu_backward",
)  # fmt: skip
"""Each must run in C++: other implementations' rows depend on their company."""


def why_not(model: PreTrainedModel) -> str:
    """What keeps :func:`hidden_states` from running ``model``; the empty string if nothing does."""
    if isinstance(model, families.SEEING):
        return "it attends to pictures"
    return families.why_not(model) or next(_reasons(model), "")


def _reasons(model: PreTrainedModel) -> Iterator[str]:
    body = cast(Any, model).model
    embedding = body.embed_tokens.weight
    for op in OPS:
        if (impl := choose(op, tensor=embedding)) != "cpp":
            yield f"op {op} runs on {impl} for {embedding.dtype} on {embedding.device.type}"
    if (width := body.layers[0].self_attn.head_dim) % HEAD_MULTIPLE:
        yield f"its heads are {width} wide, which is no multiple of {HEAD_MULTIPLE}"
    if model.training and body.config.attention_dropout:
        yield "it drops attention weights in training"


@dataclass(frozen=True, slots=True)
class _Batch:
    """What all layers read."""

    layout: PackedRows
    positions: Tensor
    cos: Tensor
    sin: Tensor
    weights: DecoderWeights


def hidden_states(model: PreTrainedModel, tokens: PackedTokens) -> Tensor:
    """The last hidden state of each of ``tokens.source``, ``[N, D]``; differentiable in the model's parameters.

    The model must be one that :func:`why_not` has nothing against.
    """
    body = cast(Any, model).model
    weights = DecoderWeights.of(model)
    tables = weights.rotary(int(tokens.positions.max()) + 1)
    batch = _Batch(tokens.layout, tokens.positions, *tables, weights)
    wanted, place = tokens.source.unique(return_inverse=True)
    x, residual = body.embed_tokens(tokens.ids), None
    saves_memory = body.gradient_checkpointing and model.training and torch.is_grad_enabled()
    for module, layer in zip(body.layers, weights.layers, strict=True):
        run = partial(_layer, module, layer, batch, wanted if layer is weights.layers[-1] else None)
        if saves_memory:
            x, residual = checkpoint(run, x, residual, use_reentrant=False, preserve_rng_state=False)
        else:
            x, residual = run(x, residual)
    normed: Tensor = Norm.apply(x, residual, body.norm.weight, weights.eps)
    return normed.index_select(0, place)


def _layer(
    module: Any,
    layer: LayerWeights,
    batch: _Batch,
    wanted: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The two summands of the residual stream behind a layer, from those ahead of it; of ``wanted`` tokens only."""
    attention, mlp, eps = module.self_attn, module.mlp, batch.weights.eps
    qkv, residual = NormedProjection.apply(
        x, residual, module.input_layernorm.weight, eps, layer.qkv,
        *_parameters(attention.q_proj, attention.k_proj, attention.v_proj),
    )  # fmt: skip
    mixed = _mixed(attention, qkv, batch)
    if wanted is not None:
        mixed, residual = mixed.index_select(0, wanted), residual.index_select(0, wanted)
    x = Projected.apply(mixed, layer.out, *_parameters(attention.o_proj))
    gate_up, residual = NormedProjection.apply(
        x, residual, module.post_attention_layernorm.weight, eps, layer.gate_up,
        *_parameters(mlp.gate_proj, mlp.up_proj),
    )  # fmt: skip
    return GatedProjection.apply(gate_up, layer.down, *_parameters(mlp.down_proj)), residual


def _mixed(attention: Any, qkv: Tensor, batch: _Batch) -> Tensor:
    """The heads' outputs side by side, ``[T, Hq * Dh]``."""
    weights = batch.weights
    heads = [weights.heads, weights.kv_heads, weights.kv_heads]
    q, k, v = qkv.view(len(qkv), -1, weights.head_dim).split(heads, 1)
    if getattr(attention, "q_norm", None) is not None:
        q, k = (
            Norm.apply(part.reshape(-1, weights.head_dim), None, norm.weight, weights.eps).view(part.shape)
            for part, norm in ((q, attention.q_norm), (k, attention.k_norm))
        )
    q, k, v = Rotated.apply(q, k, v, batch.cos, batch.sin, batch.positions)
    return packed_attention(q, k, v, batch.layout, scale=weights.scale).flatten(1)


def _parameters(*modules: Any) -> tuple[Tensor | None, ...]:
    return (*(weight(module) for module in modules), *(module.bias for module in modules))
