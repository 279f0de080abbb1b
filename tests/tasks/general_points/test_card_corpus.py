"""Pictures to learn reading from: what is on them, and that the cards are shown and not told."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks import corpora
from sftrl_fast.tasks.general_points.corpus import PICTURE_SIZE, dialogues, tables
from sftrl_fast.tasks.general_points.render import DECKS, draw_table
from sftrl_fast.tasks.general_points.rules import RANK_NAMES


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def decks_of(image: np.ndarray, ranks: list[int]) -> set[str]:
    """The decks that could have shown these ranks so."""
    found = set()
    half = PICTURE_SIZE // 2
    for deck in DECKS.values():
        for suit in deck.suits:
            table = draw_table(ranks, [suit] * 4, deck.name, PICTURE_SIZE)
            if np.array_equal(table[:half, :half], image[:half, :half]):
                found.add(deck.name)
    return found


def test_labels_are_the_ranks_in_their_quarters() -> None:
    seen: set[str] = set()
    for image, labels in islice(tables(rng()), 60):
        assert image.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
        assert labels.shape == (2, 2)
        decks = decks_of(image, (labels + 1).reshape(-1).tolist())
        assert decks, "the first quarter shows the first label"
        seen |= decks
    assert seen == set(DECKS)


def test_dialogues_show_the_cards_and_do_not_tell_them() -> None:
    for dialogue in islice(dialogues(rng(), 16, size=PICTURE_SIZE), 40):
        question, answer = dialogue[0], dialogue[-1]
        assert question.image is not None
        assert "in the picture" in question.text
        assert all(message.image is None for message in dialogue[1:])
        names = re.findall(r'"(\w+)"', answer.text.split("]")[0].split("[")[1])
        assert decks_of(question.image, [RANK_NAMES.index(name) + 1 for name in names])


def test_the_words_are_those_of_the_text_corpus() -> None:
    text, shown = (list(islice(dialogues(rng(), 4, size=size), 4)) for size in (0, 48))
    for one, other in zip(text, shown, strict=True):
        assert len(one) == len(other)
        assert one[-1].text == other[-1].text


def test_corpora_with_pictures_are_listed() -> None:
    assert set(corpora.READING) <= set(corpora.CORPORA)
    (dialogue,) = islice(corpora.stream("cards", rng()), 1)
    assert dialogue[0].image is not None
    with pytest.raises(UserError, match="corpus='none' is unknown"):
        corpora.stream("none", rng())
