"""Four cards on a green table as a picture. A card is drawn once for each size and kept; a table is copies of them.

What a card looks like is a row of :data:`DECKS`; ``cards.py`` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points.cards import CLUB, DIAMOND, FELT, HEART, SPADE, Colour, draw_card
from sftrl_fast.tasks.general_points.rules import RANK_NAMES
from sftrl_fast.tasks.seeding import digest

Pixels = npt.NDArray[np.uint8]
"""``[height, width, 3]``, red, green, blue."""

DEFAULT_SIZE = 1200
"""Pixels along a side, as the paper's pictures have."""
SMALLEST, LARGEST = 48, 4096

_BLACK: Colour = (22, 22, 26)
_RED: Colour = (196, 18, 38)
_BLUE: Colour = (24, 72, 196)
_GREEN: Colour = (12, 132, 56)
_TWO = (_BLACK, _RED, _RED, _BLACK)


@dataclass(frozen=True, slots=True)
class Deck:
    """A look. ``suits`` are those that are dealt, ``colours`` those of spade, heart, diamond, club."""

    name: str
    suits: tuple[int, ...]
    colours: tuple[Colour, Colour, Colour, Colour] = _TWO
    numerals: str = "western"
    index: float = 0.16
    """Height of the letters in the corners, in widths of a card."""


DECKS = {
    deck.name: deck
    for deck in (
        Deck("black", (SPADE, CLUB)),
        Deck("red", (HEART, DIAMOND)),
        Deck("mixed", (SPADE, HEART, DIAMOND, CLUB)),
        Deck("four-colour", (SPADE, HEART, DIAMOND, CLUB), (_BLACK, _RED, _BLUE, _GREEN)),
        Deck("large-index", (SPADE, CLUB), index=0.22),
        Deck("roman", (SPADE, CLUB), numerals="roman"),
        Deck("dots", (SPADE, CLUB), numerals="dots"),
    )
}


def get_deck(name: str) -> Deck:
    """The deck called ``name``; ``UserError`` for an unknown one."""
    if name not in DECKS:
        raise UserError(f"deck={name!r} is unknown; choose one of {', '.join(DECKS)}")
    return DECKS[name]


def deal_suits(ranks: Sequence[int], deck: Deck) -> list[int]:
    """A suit for each card, by hash and so always the same.

    Each is drawn on its own, as in the published code: cards of one rank may share a suit, and with two suits four
    cards of a rank must.
    """
    hashed = digest("points-suits", deck.name, *ranks)
    return [deck.suits[(hashed >> (8 * place)) % len(deck.suits)] for place in range(len(ranks))]


@lru_cache(maxsize=512)
def _card(rank: int, suit: int, deck: str, width: int, height: int) -> Pixels:
    look = DECKS[deck]
    drawn = draw_card(rank, suit, look.colours[suit], look.numerals, look.index, width, height)
    return np.asarray(drawn)


@lru_cache(maxsize=8)
def _felt(size: int) -> Pixels:
    felt = np.empty((size, size, 3), np.uint8)
    felt[:] = FELT
    return felt


def draw_table(
    ranks: Sequence[int], suits: Sequence[int], deck: str = "black", size: int = DEFAULT_SIZE
) -> Pixels:
    """Four cards, read like lines of text, on ``size`` x ``size`` pixels of felt; a new array.

    ``ranks`` are 1..13 and ``suits`` 0..3 (spade, heart, diamond, club). Raises ``UserError`` for anything else, for
    an unknown deck and for a size outside 48..4096.
    """
    get_deck(deck)
    for key, values, low, high in (("ranks", ranks, 1, len(RANK_NAMES)), ("suits", suits, 0, 3)):
        if len(values) != 4 or not all(low <= value <= high for value in values):
            raise UserError(f"{key}={values!r} must be four whole numbers from {low} to {high}")
    check_size(size)
    height = round(0.46 * size)
    width = round(height / 1.4)
    table = _felt(size).copy()
    for place, (rank, suit) in enumerate(zip(ranks, suits, strict=True)):
        row, column = divmod(place, 2)
        top = (size - 2 * height) * (row + 1) // 3 + height * row
        left = (size - 2 * width) * (column + 1) // 3 + width * column
        table[top : top + height, left : left + width] = _card(int(rank), int(suit), deck, width, height)
    return table


def check_size(size: object) -> None:
    """Raise ``UserError`` for a size that no table has."""
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not SMALLEST <= int(size) <= LARGEST:  # type: ignore[call-overload]
        raise UserError(f"size={size!r} must be a whole number of pixels, {SMALLEST} to {LARGEST}")
