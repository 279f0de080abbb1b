"""transformers' own modules on packed rows: no padding, and a prompt's tokens once for all its answers.

A model's attention is exchanged through transformers' attention interface; everything else of its forward works a
token at a time and needs no change. Called without packed rows, the model does what it did before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sftrl_fast.core import UserError
from sftrl_fast.models.vision import CrossAttention, Pictures
from sftrl_fast.ops.attention import PackedRows, packed_attention

ATTENTION = "sftrl_packed"
"""Name of our attention in transformers' registry."""


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """T tokens of many rows, one after another, and the N of them whose log-probability is wanted."""

    ids: Tensor
    """int64 ``[T]``."""
    positions: Tensor
    """Place of each token in its row, int64 ``[T]``; a shared prompt counts in each row that shares it."""
    layout: PackedRows
    """Which tokens see which; checked."""
    source: Tensor
    """The token that predicts each wanted one, int64 ``[N]``; a shared prompt's last one stands several times."""
    targets: Tensor
    """The wanted tokens, int64 ``[N]``."""
    pictures: Pictures | None = None
    """What the rows' image tokens stand for; None if they hold none."""


def hidden_states(model: PreTrainedModel, tokens: PackedTokens) -> Tensor:
    """The decoder's last hidden state of each of ``tokens.source``, ``[N, D]``.

    Raises ``UserError`` for a model that cannot be packed: attention dropout, or a window shorter than a row.
    """
    if model.config.get_text_config()._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    arguments: dict[str, Any] = {
        "input_ids": tokens.ids.unsqueeze(0),
        "position_ids": tokens.positions.unsqueeze(0),
        # A mask of four dimensions is passed on as it is: without one, [T, T] would be made and not be looked at.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.ids.device),
        "use_cache": False,
        "packed_rows": tokens.layout,
    }
    if tokens.pictures is not None:
        arguments |= tokens.pictures.vision.packed(model, tokens)
    output = model.get_decoder()(**arguments)
    hidden: Tensor = output.last_hidden_state
    return hidden[0, tokens.source]


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    crossed: CrossAttention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: ``[1, heads, T, Dh]`` in, ``[1, T, heads, Dh]`` out."""
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    name = type(module).__name__
    if options.get("dropout"):
        raise UserError(
            f"model.name: {name} drops attention weights in training, which packed rows do not support"
        )
    if crossed is not None and crossed.covers(module):
        return crossed.attend(query, key, value, options["scaling"]), None
    window = options.get("sliding_window")
    if window is not None and packed_rows.longest_row > window:
        raise UserError(
            f"model.name: {name} sees {window} tokens back and a row has {packed_rows.longest_row}: "
            "rows must be shorter to be trained on"
        )
    scale = options.get("scaling")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = packed_attention(q, k, v, packed_rows, scale=q.shape[-1] ** -0.5 if scale is None else scale)
    return out.unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
