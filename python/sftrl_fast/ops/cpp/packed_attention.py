"""``packed_attention`` on the CPU, forward and backward over tiles; a prompt's gradients add up in one order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sftrl_fast import _C
from sftrl_fast.ops.attention import PackedRows
from sftrl_fast.ops.cpp import DTYPE

HEAD_MULTIPLE = 8
"""The kernel's heads are a multiple of this wide; others are filled up with zeros."""


def packed_attention_cpp(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.packed_attention`."""
    width = q.shape[2]
    if rest := -width % HEAD_MULTIPLE:
        q, k, v = (torch.nn.functional.pad(part, (0, rest)) for part in (q, k, v))
    out: Tensor = _PackedAttention.apply(q, k, v, rows.offsets, rows.parent, scale)
    return out[..., :width]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, parent: Tensor, scale: float
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32)
        saved = (q, k, v, offsets, parent, out, lse)
        if q.numel():
            sizes, scratch = _sizes(q, k, parent), _scratch(q, k, parent, backward=False)
            _C.packed_attention(_addresses(*saved, scratch), sizes, scale, DTYPE[q.dtype])
        ctx.save_for_backward(*saved)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        q, k, _, _, parent, *_ = saved
        grad_out = grad_out.contiguous()
        grads = tuple(torch.empty_like(part) for part in saved[:3])
        if q.numel():
            sizes, scratch = _sizes(q, k, parent), _scratch(q, k, parent, backward=True)
            _C.packed_attention_backward(
                _addresses(*saved, scratch), _addresses(grad_out, *grads), sizes, ctx.scale, DTYPE[q.dtype]
            )
        return *grads, None, None, None


def _addresses(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _sizes(q: Tensor, k: Tensor, parent: Tensor) -> tuple[int, ...]:
    return len(q), len(parent), q.shape[1], k.shape[1], q.shape[2]


def _scratch(q: Tensor, k: Tensor, parent: Tensor, backward: bool) -> Tensor:
    floats = _C.packed_attention_scratch(_sizes(q, k, parent), DTYPE[q.dtype], backward)
    return torch.empty(floats, dtype=torch.float32)
