"""``rope_cache`` on the CPU: one pass over q, k and v."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE


def rope_cache_cpp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.rope.rope_cache`."""
    q, k, v = (_with_whole_rows(tensor) for tensor in (q, k, v))
    positions, slots = positions.contiguous(), slots.contiguous()
    rows, heads, width = q.shape
    out = torch.empty((rows, heads, width), dtype=q.dtype)
    _C.rope_cache(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), k.stride(0), v.stride(0), cos.data_ptr(), sin.data_ptr(),
        positions.data_ptr(), slots.data_ptr(), out.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), rows, heads,
        k.shape[1], width, k_cache.shape[2], DTYPE[q.dtype],
    )  # fmt: skip
    return out


def _with_whole_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if the heads of a row do not lie one after another in memory."""
    _, heads, width = tensor.shape
    along = tensor.stride()
    return tensor if along[2] == 1 and (heads == 1 or along[1] == width) else tensor.contiguous()
