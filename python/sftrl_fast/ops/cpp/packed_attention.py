"""``packed_attention`` on the CPU: the engine's own kernel forward, so that training sees the bits that sampling saw,
and tiles backward; a prompt's gradients add up in one order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sftrl_fast import _C
from sftrl_fast.ops.attention import PackedRows
from sftrl_fast.ops.cpp import DTYPE
from sftrl_fast.ops.cpp.cached_attention import cached_attention_cpp

HEAD_MULTIPLE = 8
"""The kernel's heads are a multiple of this wide; others are filled up with zeros."""


def packed_attention_cpp(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.packed_attention`."""
    width = q.shape[2]
    if rest := -width % HEAD_MULTIPLE:
        q, k, v = (torch.nn.functional.pad(part, (0, rest)) for part in (q, k, v))
    out: Tensor = _PackedAttention.apply(q, k, v, rows, scale)
    return out[..., :width]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32)
        if q.numel():
            # A page a token: packed keys and values are a cache as they are.
            out = cached_attention_cpp(q, k.unsqueeze(2), v.unsqueeze(2), rows.as_cache, scale, lse)
        ctx.save_for_backward(q, k, v, rows.offsets, rows.parent, out, lse)
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
            sizes = len(q), len(parent), q.shape[1], k.shape[1], q.shape[2]
            floats = _C.packed_attention_backward_scratch(sizes, DTYPE[q.dtype])
            scratch = torch.empty(floats, dtype=torch.float32)
            addresses = tuple(part.data_ptr() for part in (*saved, scratch, grad_out, *grads))
            _C.packed_attention_backward(addresses, sizes, ctx.scale, DTYPE[q.dtype])
        return *grads, None, None
