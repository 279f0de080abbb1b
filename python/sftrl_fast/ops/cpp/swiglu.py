"""``swiglu`` on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE


def swiglu_cpp(gate_up: Tensor) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.swiglu.swiglu`."""
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype)
    _C.swiglu(gate_up.data_ptr(), out.data_ptr(), rows, width, DTYPE[gate_up.dtype])
    return out


def swiglu_backward_cpp(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.swiglu.swiglu_backward`."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    grad_gate_up, out = torch.empty_like(gate_up), torch.empty_like(grad)
    rows, width = grad.shape
    _C.swiglu_backward(
        gate_up.data_ptr(), grad.data_ptr(), grad_gate_up.data_ptr(), out.data_ptr(), rows, width, DTYPE[grad.dtype]
    )  # fmt: skip
    return grad_gate_up, out
