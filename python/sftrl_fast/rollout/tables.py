"""What a decode step must know of every row, as arrays: a step runs no Python code a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sftrl_fast.ops.sample import uniforms
from sftrl_fast.rollout.kv_cache import Int32Array, pages_for
from sftrl_fast.rollout.request import RequestKey

UNIFORM_BLOCK = 64
"""Random numbers computed ahead for a row: Philox in numpy costs the same for one as for many."""

Slots = npt.NDArray[np.intp]
Draws = tuple[npt.NDArray[Any], ...]
"""Tokens and their plain and sampled log-probabilities; empty before the first."""


class RowTable:
    """Rows under way, a slot each, in arrays indexed by slot. A row is a sequence, or a prompt being encoded.

    Arrays grow when more slots, longer answers or longer contexts come.
    """

    def __init__(self, slots: int) -> None:
        self.left = np.zeros(slots, dtype=np.int32)
        """Tokens to encode before the row's next draw; 0 for a row that is not to run now."""
        self.cached = np.zeros(slots, dtype=np.int32)
        """Own tokens whose keys and values are in the cache."""
        self.decoding = np.zeros(slots, dtype=bool)
        """Whether what is left is the one token that was drawn last, ``next_token``."""
        self.next_token = np.zeros(slots, dtype=np.int64)
        self.mark = np.zeros(slots, dtype=np.int64)
        """What is added to every token drawn: the picture it sees, see :mod:`sftrl_fast.rollout.album`."""
        self.prefix = np.zeros(slots, dtype=np.int32)
        """Row of :class:`PrefixTable`."""
        self.order = np.zeros(slots, dtype=np.int64)
        """Rises from one admission to the next."""
        self.page_count = np.zeros(slots, dtype=np.int32)
        self.pages = np.zeros((slots, 8), dtype=np.int32)
        self.limit = np.zeros(slots, dtype=np.int32)
        self.drawn = np.zeros(slots, dtype=np.int32)
        self.kind = np.zeros(slots, dtype=np.int32)
        """Number of the row's temperature, top_k and top_p."""
        self.watched = np.zeros(slots, dtype=bool)
        """Whether the row has stop tokens or strings of its own."""
        self.answer = np.zeros((slots, 64), dtype=np.int32)
        self.plain = np.zeros((slots, 64), dtype=np.float32)
        self.sampled = np.zeros((slots, 64), dtype=np.float32)
        self._keys = np.zeros((slots, 5), dtype=np.uint64)
        self._uniforms = np.zeros((slots, UNIFORM_BLOCK), dtype=np.float32)
        self._free = list(range(slots))[::-1]

    def acquire(self, order: int, pages: Int32Array, *, cached: int, left: int) -> int:
        """A slot for a row with ``pages`` of its own, ``cached`` tokens in them and ``left`` still to encode."""
        if not self._free:
            self._grow_slots()
        slot = self._free.pop()
        self.order[slot], self.prefix[slot] = order, 0
        self.cached[slot], self.left[slot] = cached, left
        self.decoding[slot] = self.watched[slot] = False
        self.drawn[slot] = 0
        self._widen("pages", len(pages))
        self.pages[slot, : len(pages)] = pages
        self.page_count[slot] = len(pages)
        return slot

    def release(self, slot: int) -> Int32Array:
        """Free the slot; the pages it had."""
        self.left[slot] = 0
        self._free.append(slot)
        return self.own_pages(slot)

    def own_pages(self, slot: int) -> Int32Array:
        return self.pages[slot, : self.page_count[slot]].copy()

    def add_pages(self, slots: Slots, pages: Int32Array) -> None:
        """Append one page to each of ``slots``."""
        at = self.page_count[slots]
        self._widen("pages", int(at.max()) + 1)
        self.pages[slots, at] = pages
        self.page_count[slots] += 1

    def will_draw(self, slot: int, key: RequestKey, limit: int, kind: int, watched: bool, mark: int) -> None:
        """How the row's answer is drawn: at most ``limit`` tokens with the uniforms of ``key``."""
        self.limit[slot], self.kind[slot], self.watched[slot], self.mark[slot] = limit, kind, watched, mark
        for name in ("answer", "plain", "sampled"):
            self._widen(name, limit)
        self._keys[slot] = (key.seed, key.step, key.prompt, key.sample, key.turn)

    def resume(self, slot: int, draws: Draws) -> None:
        """Give the row back what it had drawn before it was evicted."""
        count = len(draws[0])
        for name, values in zip(("answer", "plain", "sampled"), draws, strict=True):
            getattr(self, name)[slot, :count] = values
        self.drawn[slot] = count
        self._refill(np.array([slot]))

    def draws(self, slot: int) -> Draws:
        """Answer tokens so far and their plain and sampled log-probabilities."""
        count = self.drawn[slot]
        return self.answer[slot, :count], self.plain[slot, :count], self.sampled[slot, :count]

    def next_uniforms(self, slots: Slots) -> npt.NDArray[np.float32]:
        """The random number of each row's next draw."""
        at = self.drawn[slots] % UNIFORM_BLOCK
        if len(fresh := slots[at == 0]):
            self._refill(fresh)
        numbers: npt.NDArray[np.float32] = self._uniforms[slots, at]
        return numbers

    def _refill(self, slots: Slots) -> None:
        start = self.drawn[slots] // UNIFORM_BLOCK * UNIFORM_BLOCK
        positions = start[:, None] + np.arange(UNIFORM_BLOCK)
        seed, step, prompt, sample, turn = self._keys[slots].T[:, :, None]
        self._uniforms[slots] = uniforms(seed, step, prompt, sample, turn, positions)

    def record(
        self,
        slots: Slots,
        tokens: npt.NDArray[np.int64],
        plain: npt.NDArray[np.float32],
        sampled: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.bool_]:
        """Write down a draw of each row, which will be encoded next; whether that was the last it may have."""
        at = self.drawn[slots]
        self.answer[slots, at], self.plain[slots, at], self.sampled[slots, at] = tokens, plain, sampled
        self.drawn[slots] = at + 1
        self.next_token[slots] = tokens | self.mark[slots]
        self.left[slots] = 1
        self.decoding[slots] = True
        ended: npt.NDArray[np.bool_] = at + 1 >= self.limit[slots]
        return ended

    def _widen(self, name: str, width: int) -> None:
        array = getattr(self, name)
        if width > array.shape[1]:
            wider = np.zeros((len(array), max(width, 2 * array.shape[1])), dtype=array.dtype)
            wider[:, : array.shape[1]] = array
            setattr(self, name, wider)

    def _grow_slots(self) -> None:
        count = len(self.left)
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray):
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self._free = list(range(count, 2 * count))[::-1]


class PrefixTable:
    """Prompts in the cache that rows share. Row 0 is the empty prompt."""

    def __init__(self) -> None:
        self.lengths = np.zeros(8, dtype=np.int32)
        self.pages = np.zeros((8, 8), dtype=np.int32)
        self._free = list(range(1, 8))[::-1]

    def acquire(self, length: int, pages: Int32Array) -> int:
        if not self._free:
            count = len(self.lengths)
            self.lengths = np.concatenate([self.lengths, np.zeros_like(self.lengths)])
            self.pages = np.concatenate([self.pages, np.zeros_like(self.pages)])
            self._free = list(range(count, 2 * count))[::-1]
        if len(pages) > self.pages.shape[1]:
            wider = np.zeros((len(self.pages), 2 * len(pages)), dtype=np.int32)
            wider[:, : self.pages.shape[1]] = self.pages
            self.pages = wider
        row = self._free.pop()
        self.lengths[row] = length
        self.pages[row, : len(pages)] = pages
        return row

    def release(self, row: int) -> Int32Array:
        """Free the row; the pages it had."""
        self._free.append(row)
        return self.pages[row, : pages_for(int(self.lengths[row]))].copy()
