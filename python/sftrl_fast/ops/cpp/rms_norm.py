"""``rms_norm`` on the CPU: one pass for the sum and the mean, one for the result."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE


def rms_norm_cpp(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.rms_norm.rms_norm`."""
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    rows, width = x.shape
    if residual is None:
        _C.rms_norm(x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0, rows, width, eps, DTYPE[x.dtype])
        return out, x
    residual, total = residual.contiguous(), torch.empty_like(x)
    _C.rms_norm(
        x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr(), rows, width, eps,
        DTYPE[x.dtype],
    )  # fmt: skip
    return out, total


def rms_norm_backward_cpp(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float, passed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.rms_norm.rms_norm_backward`."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    passed = None if passed is None else passed.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    rows, width = x.shape
    scratch = torch.empty(_C.rms_norm_backward_scratch(rows, width), dtype=torch.float32)
    tensors = (x, weight, grad, passed, grad_x, grad_weight, scratch)
    addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    _C.rms_norm_backward(addresses, rows, width, eps, DTYPE[x.dtype])
    return grad_x, grad_weight
