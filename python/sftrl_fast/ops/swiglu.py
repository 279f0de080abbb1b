"""The gated activation of Llama's feed-forward layers (SwiGLU, arXiv 2002.05202), and its gradient."""

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
    _check(gate_up)
    result: Tensor = resolve("swiglu", impl, gate_up)(gate_up)
    return result


@torch.no_grad()
def swiglu_backward(gate_up: Tensor, grad: Tensor, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """Gradient of ``gate_up``, ``[T, 2F]``, for ``grad`` ``[T, F]``, that of the result; and the result again.

    The gradient of the matrix behind needs the result, which so need not be kept. Sums run in float32.
    Raises :class:`UserError` for wrong shapes, types or devices.
    """
    _check(gate_up)
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    if grad.shape != shape or grad.dtype != gate_up.dtype or grad.device != gate_up.device:
        came, needed = (f"{dtype} {list(size)} on {device}" for dtype, size, device in (
            (grad.dtype, grad.shape, grad.device), (gate_up.dtype, shape, gate_up.device)
        ))  # fmt: skip
        raise UserError(f"grad is {came}; needed: {needed}")
    grad_gate_up, out = resolve("swiglu_backward", impl, gate_up)(gate_up, grad)
    return grad_gate_up, out


def _check(gate_up: Tensor) -> None:
    if gate_up.dim() != 2 or not gate_up.is_floating_point() or gate_up.shape[1] < 2 or gate_up.shape[1] % 2:
        raise UserError(
            f"gate_up is {gate_up.dtype} {list(gate_up.shape)}; needed: floating [T, 2F] with F > 0"
        )


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """The plain torch implementation; arguments as checked by :func:`swiglu`."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def swiglu_backward_torch(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`swiglu_backward`."""
    wide = torch.float64 if gate_up.dtype == torch.float64 else torch.float32
    gate, up = gate_up.to(wide).chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    of_gate = up * (sigmoid * (1 + gate * (1 - sigmoid)))
    of_up = F.silu(gate_up.chunk(2, dim=1)[0]).to(wide)
    slopes = torch.cat([of_gate, of_up], dim=1) * grad.to(wide).repeat(1, 2)
    return slopes.to(gate_up.dtype), swiglu_torch(gate_up)
