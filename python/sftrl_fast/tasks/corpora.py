"""Table of dialogue streams a model can be pre-trained on: name -> endless stream from a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sftrl_fast.core import Dialogue, Image, UserError
from sftrl_fast.tasks.general_points.corpus import PICTURE_SIZE, tables
from sftrl_fast.tasks.general_points.corpus import dialogues as points

CORPORA: dict[str, Callable[[np.random.Generator], Iterator[Dialogue]]] = {
    "points": points,
    "cards": partial(points, size=PICTURE_SIZE),
}
READING: dict[str, Callable[[np.random.Generator], Iterator[tuple[Image, np.ndarray]]]] = {"cards": tables}
"""Of the corpora with pictures: endless streams of pictures and the class of what each of their regions shows, int
``[rows, columns]``, to teach a vision tower with before the dialogues."""


def stream(name: str, rng: np.random.Generator) -> Iterator[Dialogue]:
    """The stream called ``name``; ``UserError`` for an unknown one."""
    if name not in CORPORA:
        raise UserError(f"corpus={name!r} is unknown; choose one of {', '.join(CORPORA)}")
    return CORPORA[name](rng)
