"""Table of dialogue streams a model can be pre-trained on, one row a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from sftrl_fast.core import Dialogue, Image, UserError
from sftrl_fast.tasks.general_points import corpus as points
from sftrl_fast.tasks.navigation import corpus as navigation


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream and what a model that is made for it needs."""

    stream: Callable[[np.random.Generator], Iterator[Dialogue]]
    """Endless; a function of its generator."""
    pieces: str
    """Regular expression of what changes from dialogue to dialogue: the tokenizer splits there."""
    tokenizer_dialogues: int
    """How many dialogues the tokenizer learns the wording from: enough that every fixed piece is common."""
    context: int
    """Tokens a dialogue may take."""
    spread: float = 0.02
    """Standard deviation of the initial weights. At ``1 / sqrt(width)`` attention's scores begin of order 1; at 0.02
    it begins all but even, from where a model learns to find and to copy much later."""


CORPORA = {
    "points": Corpus(points.dialogues, points.PIECES, tokenizer_dialogues=4000, context=1024),
    "cards": Corpus(
        partial(points.dialogues, size=points.PICTURE_SIZE),
        points.PIECES,
        tokenizer_dialogues=0,
        context=1024,
    ),
    "navigation": Corpus(
        navigation.dialogues,
        navigation.PIECES,
        tokenizer_dialogues=navigation.WORDING,
        context=2048,
        spread=0.09,
    ),
    "walks": Corpus(
        navigation.seen_dialogues,
        navigation.PIECES,
        tokenizer_dialogues=0,
        context=2048,
    ),
}


READING: dict[str, Callable[[np.random.Generator], Iterator[tuple[Image, np.ndarray]]]] = {
    "cards": points.tables,
    "walks": navigation.views,
}
"""Of the corpora with pictures: endless streams of pictures and the class of what each of their regions shows, int
``[rows, columns]``, to teach a vision tower with before the dialogues. Their language, and so the tokenizer, is that
of the text model they start from."""


def get(name: str) -> Corpus:
    """The row called ``name``; ``UserError`` for an unknown one."""
    if name not in CORPORA:
        raise UserError(f"corpus={name!r} is unknown; choose one of {', '.join(CORPORA)}")
    return CORPORA[name]


def stream(name: str, rng: np.random.Generator) -> Iterator[Dialogue]:
    """The stream called ``name``; ``UserError`` for an unknown one."""
    return get(name).stream(rng)
