"""The gated activation of Llama-type feed-forward layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


@torch.no_grad()
def swiglu(gate_up: Tensor, *, impl: str | None = None) -> Tensor:
    """``silu(gate) * up`` for rows that hold gate and up side by side (arXiv 2002.05202, eq. 5); inference only.

    ``gate_up`` is floating ``[T, 2 F]``: the first F columns are the gate, the others up. Returns ``[T, F]`` of
    the same type. ``silu(x) = x / (1 + e^-x)`` is computed in float32 and rounded to the type before the product, as
    transformers' LlamaMLP does. Raises :class:`UserError` for a wrong shape or type.
    """
    if gate_up.dim() != 2 or not gate_up.is_floating_point() or gate_up.shape[1] % 2 or not gate_up.shape[1]:
        raise UserError(
            f"gate_up is {gate_up.dtype} {list(gate_up.shape)}; needed: floating [T, 2 F] with F > 0"
        )
    out: Tensor = resolve("swiglu", impl, gate_up)(gate_up)
    return out


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """The plain torch implementation; arguments as checked by :func:`swiglu`."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up
