"""The pictures that requests show: each computed once, and kept as long as a request or a session shows it.

Which picture a token sees is part of its number in the scheduler: above the token's own 31 bits stand whether it is
ahead of the picture, and the picture's number. So contexts that differ in their pictures differ, and what is shared,
kept, evicted or compared needs no thought of pictures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary, finalize

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sftrl_fast.core import Image
from sftrl_fast.models.packed_linears import PackedLinears
from sftrl_fast.models.vision import CrossVision
from sftrl_fast.ops.attention import CacheRows, Shown
from sftrl_fast.rollout.kv_cache import PAGE_SIZE, pages_for
from sftrl_fast.rollout.request import EngineCounters

Tokens = npt.NDArray[np.int64]

TOKEN = (1 << 31) - 1
"""The bits of a marked token that are its own."""
AHEAD = 31
"""The bit that says that the token is ahead of its picture."""
AT_ONCE = 8
"""Pictures that go through the tower together: enough to fill the cores, few enough for its activations."""
FIRST_SLOTS = 8


class Shelf:
    """Pages for pictures, a slot each, ``[pages, Hkv, PAGE_SIZE, Dh]`` a layer; grows when more are on show.

    A slot is the pages of all positions and two pages more: at offset 0 of the first stands the last position that
    tokens behind the picture see, of the second the last of all. A query of ``cached_attention`` sees a prefix and own
    tokens, itself among them: the positions but the last are the prefix, the last is the token of its own.
    """

    def __init__(self, positions: int) -> None:
        self.positions, self.body = positions, pages_for(positions)
        self.pages = self.body + 2
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._free: list[int] = []

    def take(self) -> int:
        if not self._free and self.keys:
            slots = len(self.keys[0]) // self.pages
            for pool in (self.keys, self.values):
                pool[:] = [torch.cat([layer, torch.empty_like(layer)]) for layer in pool]
            self._free = list(range(slots, 2 * slots))
        return self._free.pop()

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def prepare(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Make the first slots, for layers of these keys and values."""
        if not self.keys:
            for pool, number in ((self.keys, 0), (self.values, 1)):
                for part in (pair[number] for pair in layers):
                    heads, _, width = part.shape
                    pool.append(part.new_empty(FIRST_SLOTS * self.pages, heads, PAGE_SIZE, width))
            self._free = list(range(FIRST_SLOTS))

    def put(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Write ``[Hkv, S, Dh]`` a layer into the slot."""
        begin = slot * self.pages
        for pool, number in ((self.keys, 0), (self.values, 1)):
            for layer, pair in zip(pool, layers, strict=True):
                part = pair[number].transpose(0, 1)
                whole = self.positions // PAGE_SIZE
                pages = layer[begin : begin + whole].transpose(1, 2)
                pages.copy_(part[: whole * PAGE_SIZE].view(whole, PAGE_SIZE, *part.shape[1:]))
                if rest := self.positions % PAGE_SIZE:
                    layer[begin + whole, :, :rest] = part[-rest:].transpose(0, 1)
                layer[begin + self.body, :, 0] = part[length - 1]
                layer[begin + self.body + 1, :, 0] = part[-1]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Picture:
    """A picture on show."""

    number: int
    """From 1, each time anew."""
    image: Image
    slot: int = -1
    length: int = 0
    """Positions that a token behind it sees."""
    version: int = 0
    """Of the weights that its keys and values are of."""


class Album:
    """``model``'s pictures. Refers to those that others hold."""

    def __init__(self, model: nn.Module, vision: CrossVision, counters: EngineCounters) -> None:
        self._model, self._vision, self._counters = model, vision, counters
        self._numbers = count(1)
        self._of_image: WeakValueDictionary[int, Picture] = WeakValueDictionary()
        self._of_number: WeakValueDictionary[int, Picture] = WeakValueDictionary()
        self._shelf = Shelf(vision.picture_tokens)
        self._linears = PackedLinears()

    def __len__(self) -> int:
        return len(self._of_number)

    def pictures(self, images: Sequence[Image]) -> tuple[Picture, ...]:
        """One array is one picture, as long as the result is held."""
        return tuple(self._picture(image) for image in images)

    def marked(self, context: Tokens, pictures: Sequence[Picture]) -> Tokens:
        """The context's tokens, each with the picture it sees; :class:`UserError` if image tokens are more or fewer."""
        seen, follows = self._vision.seen(context, len(pictures))
        if not pictures:
            return context
        numbers = np.array([picture.number for picture in pictures], dtype=np.int64)[seen]
        return context | ((numbers << 1 | ~follows) << AHEAD)

    def shown(self, marks: Tokens, version: int, device: torch.device) -> Shown | None:
        """Who sees what in a pass, from its tokens' marks; what weights of ``version`` have not seen goes through the
        tower first."""
        if not marks.any():
            return None
        places = np.flatnonzero(marks)
        found, where = np.unique(marks[places], return_inverse=True)
        order = np.argsort(where, kind="stable")
        places, where = places[order], where[order]
        pictures = [self._of_number[mark >> 1] for mark in found.tolist()]
        self._look([picture for picture in pictures if picture.version != version], version)
        shelf, ahead = self._shelf, found & 1
        begins = np.array([picture.slot for picture in pictures]) * shelf.pages
        lengths = np.where(ahead, shelf.positions, [picture.length for picture in pictures])
        tables = (
            np.arange(len(places) + 1), where, begins[:, None] + np.arange(shelf.body), lengths - 1,
            (begins + shelf.body + ahead)[where, None], np.ones(len(places)),
        )  # fmt: skip
        rows = CacheRows(*(torch.from_numpy(table.astype(np.int32)).to(device) for table in tables))
        everyone = len(places) == len(marks) and bool((places == np.arange(len(marks))).all())
        follows = np.zeros((len(marks), 1), dtype=bool)
        follows[places, 0] = ahead[where] == 0
        return Shown(
            None if everyone else torch.from_numpy(places).to(device), rows, shelf.keys, shelf.values,
            torch.from_numpy(follows).to(device),
        )  # fmt: skip

    @torch.no_grad()
    def _look(self, pictures: Sequence[Picture], version: int) -> None:
        began, fresh, shelf = time.perf_counter(), list(dict.fromkeys(pictures)), self._shelf
        self._linears.version = version
        for start in range(0, len(fresh), AT_ONCE):
            part = fresh[start : start + AT_ONCE]
            with self._linears:
                found = self._vision.cells(self._model, [picture.image for picture in part])
            for picture, cells in zip(part, found, strict=True):
                shelf.prepare(cells.layers)
                if picture.slot < 0:
                    picture.slot = shelf.take()
                    finalize(picture, shelf.give, picture.slot)
                shelf.put(picture.slot, cells.layers, cells.length)
                picture.length, picture.version = cells.length, version
        self._counters.pictures += len(fresh)
        self._counters.picture_seconds += time.perf_counter() - began

    def _picture(self, image: Image) -> Picture:
        known = self._of_image.get(id(image))
        if known is None:
            known = Picture(next(self._numbers), image)
            self._of_image[id(image)] = self._of_number[known.number] = known
        return known
