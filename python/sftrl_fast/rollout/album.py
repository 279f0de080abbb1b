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
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sftrl_fast.core import Image
from sftrl_fast.models.decoder import Shown
from sftrl_fast.models.vision import Cells, Vision
from sftrl_fast.rollout.request import EngineCounters

Tokens = npt.NDArray[np.int64]

TOKEN = (1 << 31) - 1
"""The bits of a marked token that are its own."""
AHEAD = 31
"""The bit that says that the token is ahead of its picture."""
AT_ONCE = 8
"""Pictures that go through the tower together: enough to fill the cores, few enough for its activations."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Picture:
    """A picture on show."""

    number: int
    """From 1, each time anew."""
    image: Image
    cells: Cells | None = None
    version: int = 0
    """Of the weights that ``cells`` are of."""


class Album:
    """``model``'s pictures. Refers to those that others hold."""

    def __init__(self, model: nn.Module, vision: Vision, counters: EngineCounters) -> None:
        self._model, self._vision, self._counters = model, vision, counters
        self._numbers = count(1)
        self._of_image: WeakValueDictionary[int, Picture] = WeakValueDictionary()
        self._of_number: WeakValueDictionary[int, Picture] = WeakValueDictionary()

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

    def shown(self, marks: Tokens, version: int, device: torch.device) -> list[Shown]:
        """Who sees what in a pass, from its tokens' marks; what weights of ``version`` have not seen goes through the
        tower first."""
        if not marks.any():
            return []
        found, where = np.unique(marks, return_inverse=True)
        known = {int(mark): self._of_number[int(mark) >> 1] for mark in found if mark}
        self._look([picture for picture in known.values() if picture.version != version], version)
        shown = []
        for place, mark in enumerate(found.tolist()):
            if not mark:
                continue
            cells, follows = known[mark].cells, not mark & 1
            assert cells is not None
            tokens = torch.from_numpy(np.flatnonzero(where == place)).to(device)
            length = cells.length if follows else cells.layers[0][0].shape[1]
            shown.append(Shown(tokens, cells.layers, length, follows))
        return shown

    @torch.no_grad()
    def _look(self, pictures: Sequence[Picture], version: int) -> None:
        began, fresh = time.perf_counter(), list(dict.fromkeys(pictures))
        for start in range(0, len(fresh), AT_ONCE):
            part = fresh[start : start + AT_ONCE]
            for picture, cells in zip(
                part, self._vision.cells(self._model, [picture.image for picture in part]), strict=True
            ):
                picture.cells, picture.version = cells, version
        self._counters.pictures += len(fresh)
        self._counters.picture_seconds += time.perf_counter() - began

    def _picture(self, image: Image) -> Picture:
        known = self._of_image.get(id(image))
        if known is None:
            known = Picture(next(self._numbers), image)
            self._of_image[id(image)] = self._of_number[known.number] = known
        return known
