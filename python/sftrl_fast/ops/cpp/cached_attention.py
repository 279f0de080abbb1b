"""``cached_attention`` on the CPU: a prefix's keys and values are read once for all its sequences' queries."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.ops.cpp import DTYPE


def cached_attention_cpp(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: CacheRows, scale: float, lse: Tensor | None = None
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.cached_attention`.

    ``lse``, float32 ``[T, Hq]``, is filled with the log2 of the sum of ``2 ** (scale * log2(e) * q k)`` over what a
    query sees.
    """
    q = q.contiguous()
    out = torch.empty_like(q)
    tensors = (
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(), 0 if lse is None else lse.data_ptr()
    )  # fmt: skip
    _C.cached_attention(
        tensors, tables(rows), sizes(rows, k_cache), (q.shape[1], k_cache.shape[1], q.shape[2]), scale,
        DTYPE[q.dtype],
    )  # fmt: skip
    return out


def tables(rows: CacheRows) -> tuple[int, int, int, int, int, int]:
    """The addresses of the tables, in the order of ``CachedAttentionArgs``."""
    return (
        rows.query_offsets.data_ptr(), rows.prefix_of.data_ptr(), rows.prefix_pages.data_ptr(),
        rows.prefix_lengths.data_ptr(), rows.own_pages.data_ptr(), rows.own_lengths.data_ptr(),
    )  # fmt: skip


def sizes(rows: CacheRows, cache: Tensor) -> tuple[int, int, int, int]:
    """Sequences, the tables' strides, and the tokens of one of the cache's pages."""
    return len(rows.own_lengths), rows.prefix_pages.shape[1], rows.own_pages.shape[1], cache.shape[2]
