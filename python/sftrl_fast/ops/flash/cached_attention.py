"""``cached_attention`` by FlashAttention: a sequence over its own pages, a group's queries as one over the prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.flash.calls import Pages, attend_pages, check_heads, merge
from sftrl_fast.ops.flash.packages import cached_package

LARGEST_PAGE = 32
"""Pages that hold a whole tile of keys are loaded with the places behind the last token, and those may be NaN."""


def cached_attention_flash(q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Any, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.cached_attention`, ``rows`` its ``CacheRows``.

    The tables are read to the host at the first call with ``rows`` and kept: they must not be changed in place.
    Raises :class:`~sftrl_fast.core.UserError` for heads or pages whose size the packages do not take.
    """
    check_heads(q.shape[2])
    page = k_cache.shape[2]
    if page > LARGEST_PAGE:
        raise UserError(
            f"k_cache has pages of {page} tokens; needed: at most {LARGEST_PAGE} for impl 'flash'"
        )
    package, plan = cached_package(), _plan(rows, page)
    caches = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    out, lse = attend_pages(package, q, *caches, plan.own, scale)
    if plan.shared is not None:
        at = plan.readers
        over = attend_pages(package, q[at], *caches, plan.shared, scale)
        out[at] = merge(out[at], lse[:, at], *over)[0]
    return out


@dataclass(frozen=True, slots=True)
class _Plan:
    own: Pages
    shared: Pages | None
    """The queries of each group that has a prefix; None if none has."""
    readers: Tensor | slice
    """Which queries those are: int64, or all."""


_plans: WeakKeyDictionary[Any, _Plan] = WeakKeyDictionary()
"""One a step, not one a layer."""


def _plan(rows: Any, page: int) -> _Plan:
    if rows not in _plans:
        offsets = rows.query_offsets
        own = Pages(
            offsets, _sound(rows.own_pages, rows.own_lengths, page), rows.own_lengths, rows.max_query, True
        )
        groups = torch.arange(len(rows.prefix_lengths) + 1, dtype=torch.int32, device=offsets.device)
        group_offsets = offsets[torch.searchsorted(rows.prefix_of, groups)]
        counts = torch.where(rows.prefix_lengths > 0, group_offsets.diff(), 0)
        kept = counts.nonzero().squeeze(1)
        shared, readers = None, slice(None)
        if len(kept):
            lengths, queries = (
                rows.prefix_lengths[kept],
                torch.cat((offsets[:1], counts[kept].cumsum(0).int())),
            )
            table = _sound(rows.prefix_pages[kept], lengths, page)
            shared = Pages(queries, table, lengths, int(counts.max()), False)
            total = int(offsets[-1])
            if int(queries[-1]) < total:
                token = torch.arange(total, dtype=torch.int32, device=offsets.device)
                group_of = torch.searchsorted(group_offsets[1:], token, right=True)
                readers = (rows.prefix_lengths[group_of] > 0).nonzero().squeeze(1)
        _plans[rows] = _Plan(own, shared, readers)
    return _plans[rows]


def _sound(table: Tensor, lengths: Tensor, page: int) -> Tensor:
    """``table`` with page 0 where a sequence has none: a package may look there."""
    used = torch.arange(table.shape[1], device=table.device) * page < lengths.unsqueeze(1)
    return torch.where(used, table, 0)
