"""The table's picture: every card in its place, tellable from every other, in every deck and at any size."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points.cards import CLUB, DIAMOND, FELT, HEART, SPADE
from sftrl_fast.tasks.general_points.render import DECKS, LARGEST, SMALLEST, deal_suits, draw_table

RANKS = range(1, 14)


def quarters(table: np.ndarray) -> list[np.ndarray]:
    """Upper left, upper right, lower left, lower right."""
    half = len(table) // 2
    return [table[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]


@pytest.mark.parametrize("size", [SMALLEST, 112, 225, 1200])
def test_a_table_is_what_was_asked_for(size: int) -> None:
    table = draw_table([1, 13, 10, 7], [SPADE, CLUB, SPADE, CLUB], "black", size)
    assert table.shape == (size, size, 3)
    assert table.dtype == np.uint8
    assert (table[0, 0] == FELT).all()
    assert ((table == 22).any(axis=2)).any(), "black ink"


@pytest.mark.parametrize("deck", DECKS)
def test_any_two_ranks_look_different(deck: str) -> None:
    suit = DECKS[deck].suits[0]
    tables = {rank: draw_table([rank] * 4, [suit] * 4, deck, 112).astype(int) for rank in RANKS}
    for a, b in combinations(RANKS, 2):
        assert (np.abs(tables[a] - tables[b]).max(axis=2) > 60).sum() > 40, (a, b)


@pytest.mark.parametrize("deck", DECKS)
def test_any_two_suits_look_different(deck: str) -> None:
    suits = DECKS[deck].suits
    tables = [draw_table([5] * 4, [suit] * 4, deck, 240).astype(int) for suit in suits]
    for a, b in combinations(tables, 2):
        assert (np.abs(a - b).max(axis=2) > 60).sum() > 40


def test_cards_are_read_like_lines_of_text() -> None:
    alone = {rank: quarters(draw_table([rank] * 4, [HEART] * 4, "red", 200)) for rank in (2, 9, 11, 13)}
    mixed = quarters(draw_table([2, 9, 11, 13], [HEART] * 4, "red", 200))
    for place, rank in enumerate((2, 9, 11, 13)):
        assert np.array_equal(mixed[place], alone[rank][place])


def test_decks_have_their_colours() -> None:
    def ink(deck: str, suit: int) -> set[tuple[int, ...]]:
        table = draw_table([8] * 4, [suit] * 4, deck, 300)
        return {tuple(colour) for colour in np.unique(table.reshape(-1, 3), axis=0).tolist()}

    red, black = (196, 18, 38), (22, 22, 26)
    for suit in DECKS["black"].suits:
        assert black in ink("black", suit)
        assert red not in ink("black", suit)
    for suit in DECKS["red"].suits:
        assert red in ink("red", suit)
        assert black not in ink("red", suit)
    assert (
        len({max(ink("four-colour", suit) & {red, black, (24, 72, 196), (12, 132, 56)}) for suit in range(4)})
        == 4
    )


def test_suits_are_dealt_from_the_deck_and_always_the_same() -> None:
    for deck in DECKS.values():
        hands = [[a, b, 7, 7] for a in RANKS for b in RANKS]
        dealt = [deal_suits(hand, deck) for hand in hands]
        assert dealt == [deal_suits(hand, deck) for hand in hands]
        assert {suit for suits in dealt for suit in suits} == set(deck.suits)
        for place in range(4):
            share = np.mean([suits[place] == deck.suits[0] for suits in dealt])
            assert abs(share - 1 / len(deck.suits)) < 0.15


def test_a_table_is_the_callers_own() -> None:
    first = draw_table([1, 2, 3, 4], [HEART, DIAMOND, SPADE, CLUB], "mixed", 100)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(draw_table([1, 2, 3, 4], [HEART, DIAMOND, SPADE, CLUB], "mixed", 100), kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2, 3, 4], [0] * 4, "black", 100), "ranks="),
        (([1, 2, 3, 14], [0] * 4, "black", 100), "ranks="),
        (([1, 2, 3], [0] * 4, "black", 100), "ranks="),
        (([1, 2, 3, 4], [0, 0, 0, 4], "black", 100), "suits="),
        (([1, 2, 3, 4], [0] * 4, "tarot", 100), "deck='tarot' is unknown"),
        (([1, 2, 3, 4], [0] * 4, "black", SMALLEST - 1), "size="),
        (([1, 2, 3, 4], [0] * 4, "black", LARGEST + 1), "size="),
        (([1, 2, 3, 4], [0] * 4, "black", True), "size=True"),
    ],
)
def test_bad_input_names_the_argument(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_table(*arguments)
