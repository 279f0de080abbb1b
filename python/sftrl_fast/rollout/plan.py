"""One forward pass over rows of many lengths, without padding: which tokens, at which positions, in which pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.rollout.album import AHEAD, TOKEN, Tokens
from sftrl_fast.rollout.kv_cache import PAGE_SIZE, Int32Array
from sftrl_fast.rollout.scheduler import Prefix, Scheduler
from sftrl_fast.rollout.tables import Slots


@dataclass(frozen=True, slots=True)
class Pass:
    """S rows with T tokens in all, as :meth:`sftrl_fast.models.decoder.Decoder.hidden` wants them."""

    slots: Slots
    """``[S]``, rows that share a prompt side by side."""
    count: Int32Array
    """``[S]``, tokens of each."""
    complete: npt.NDArray[np.bool_]
    """``[S]``, whether nothing is left to encode of the row after this."""
    marks: Tokens
    """``[T]``, what each token sees; see :mod:`sftrl_fast.rollout.album`."""
    tokens: Tensor
    positions: Tensor
    places: Tensor
    rows: CacheRows
    wanted: Tensor
    """The last token of each complete row, in the order of ``slots``."""


def plan(scheduler: Scheduler, budget: int, device: torch.device) -> Pass | None:
    """The next pass of about ``budget`` tokens; None if no row has anything to encode.

    Rows with one token go first, then the others in the order of their admission, the last one cut. What exceeds the
    budget by an eighth at most goes with it: a pass for a few tokens reads all weights again. Takes the pages that are
    needed, and evicts sequences where there are none.
    """
    table = scheduler.rows
    while True:
        slots, count = _share(scheduler, budget)
        if not len(slots):
            return None
        full = table.cached[slots] + count > table.page_count[slots] * PAGE_SIZE
        growing = slots[full]
        if len(growing) <= scheduler.cache.free:
            break
        scheduler.make_room(len(growing))
    if len(growing):
        table.add_pages(growing, scheduler.cache.take(len(growing)))
    slots, count = slots.astype(np.intp), count.astype(np.int32)
    offsets = np.zeros(len(slots) + 1, dtype=np.int32)
    np.cumsum(count, out=offsets[1:])
    cached, prefix = table.cached[slots], table.prefix[slots]
    row, own = slots, cached.astype(np.int64)
    if len(slots) != offsets[-1]:
        row = np.repeat(slots, count)
        own = np.repeat(cached - offsets[:-1], count) + np.arange(offsets[-1])
    page, offset = np.divmod(own, PAGE_SIZE)
    complete = count == table.left[slots]
    marked = _tokens(scheduler, slots, offsets, own)
    arrays = (
        marked & TOKEN,
        own + scheduler.prefixes.lengths[table.prefix[row]],
        table.pages[row, page].astype(np.int64) * PAGE_SIZE + offset,
        (offsets[1:] - 1)[complete].astype(np.int64),
    )
    tokens, positions, places, wanted = (torch.from_numpy(array).to(device) for array in arrays)
    rows = _cache_rows(scheduler, slots, prefix, offsets, cached + count, device)
    return Pass(slots, count, complete, marked >> AHEAD, tokens, positions, places, rows, wanted)


def _share(scheduler: Scheduler, budget: int) -> tuple[Slots, Int32Array]:
    """Rows to run and how many tokens of each, rows of one prompt side by side."""
    table = scheduler.rows
    slots = np.flatnonzero(table.left)
    left = table.left[slots]
    if left.sum() > max(budget + budget // 8, len(slots)):
        turn = np.lexsort((table.order[slots], left > 1))
        slots, left = slots[turn], left[turn]
        before = np.cumsum(left) - left
        left = np.clip(max(budget, int((left == 1).sum()) + 1) - before, 0, left)
        slots, left = slots[left > 0], left[left > 0]
    together = np.argsort(table.prefix[slots], kind="stable")
    return slots[together], left[together]


def _tokens(
    scheduler: Scheduler, slots: Slots, offsets: Int32Array, own: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    table = scheduler.rows
    decoding = table.decoding[slots]
    if decoding.all():
        return table.next_token[slots]
    tokens = np.empty(len(own), dtype=np.int64)
    tokens[offsets[:-1][decoding]] = table.next_token[slots[decoding]]
    for i in np.flatnonzero(~decoding).tolist():
        owner = scheduler.owner[int(slots[i])]
        known = owner.tokens if isinstance(owner, Prefix) else owner.known
        begin, end = int(offsets[i]), int(offsets[i + 1])
        tokens[begin:end] = known[own[begin] : own[begin] + end - begin]
    return tokens


def _cache_rows(
    scheduler: Scheduler,
    slots: Slots,
    prefix: Int32Array,
    offsets: Int32Array,
    lengths: Int32Array,
    device: torch.device,
) -> CacheRows:
    table, prefixes = scheduler.rows, scheduler.prefixes
    first = np.empty(len(prefix), dtype=bool)
    first[:1], first[1:] = True, prefix[1:] != prefix[:-1]
    groups = prefix[first]
    shared = prefixes.lengths[groups]
    arrays = (
        offsets,
        (np.cumsum(first) - 1).astype(np.int32),
        prefixes.pages[groups, : -(-int(shared.max()) // PAGE_SIZE)],
        shared,
        table.pages[slots, : int(table.page_count[slots].max())],
        lengths.astype(np.int32),
    )
    return CacheRows(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
