"""The gated activation of Llama's feed-forward layers (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


@torch.no_grad()
def swiglu(gate_up: Tensor, *, impl: str | None = None) -> Tensor:
    """``silu(gate) * up``, ``[T, F]``, of ``gate_up`` ``[T, 2F]``, the gates first; inference only.

    ``silu(gate)`` is rounded to the type before the product, as transformers' Llama does.
    Raises :class:`UserError` for a wrong shape or type.
    """
    if gate_up.dim() != 2 or not gate_up.is_floating_point() or gate_up.shape[1] < 2 or gate_up.shape[1] % 2:
        raise UserError(
            f"gate_up is {gate_up.dtype} {list(gate_up.shape)}; needed: floating [T, 2F] with F > 0"
        )
    result: Tensor = resolve("swiglu", impl, gate_up)(gate_up)
    return result


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """The plain torch implementation; arguments as checked by :func:`swiglu`."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up
