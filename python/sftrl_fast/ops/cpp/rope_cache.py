"""``rope_cache`` on the CPU: one pass over the tokens, straight into the cache."""

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
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.rope_cache.rope_cache`."""
    q, k, v = (_rows(part) for part in (q, k, v))
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype)
    cos, sin, positions, slots = (part.contiguous() for part in (cos, sin, positions, slots))
    _C.rope_cache(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), cos.data_ptr(), sin.data_ptr(),
        positions.data_ptr(), slots.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), tokens, q.stride(0),
        k.stride(0), v.stride(0), heads, k.shape[1], dim, k_cache.shape[2], DTYPE[q.dtype],
    )  # fmt: skip
    return out


def _rows(part: Tensor) -> Tensor:
    """``[T, H, Dh]`` in which each token's part is contiguous."""
    return part if part.stride(2) == 1 and part.stride(1) == part.shape[2] else part.contiguous()
