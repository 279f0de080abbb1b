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
    tables = (
        rows.query_offsets, rows.prefix_of, rows.prefix_pages, rows.prefix_lengths, rows.own_pages,
        rows.own_lengths,
    )  # fmt: skip
    _C.cached_attention(
        tensors, tuple(table.data_ptr() for table in tables), len(rows.own_lengths), rows.prefix_pages.shape[1],
        rows.own_pages.shape[1], q.shape[1], k_cache.shape[1], k_cache.shape[2], q.shape[2], scale,
        DTYPE[q.dtype],
    )  # fmt: skip
    return out
