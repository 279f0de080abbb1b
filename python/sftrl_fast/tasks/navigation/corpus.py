r"""Dialogues for pre-training a ``tiny`` model: walks through small cities that no set uses.

Both languages of action, each place and street new: so the model learns the form, to find its place in the
instructions and to follow the words of the question. A share of the answers is wrong first; those are shown and
not trained. No city of :data:`~sftrl_fast.tasks.navigation.city.CITIES` is walked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sftrl_fast.core import Dialogue, Message
from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.city import City, pretraining_city, random_way, route
from sftrl_fast.tasks.navigation.dataset import Route
from sftrl_fast.tasks.navigation.expert import right_answer
from sftrl_fast.tasks.navigation.rail import build_rail
from sftrl_fast.tasks.navigation.rules import COMPASS, LANGUAGES, RELATIVE
from sftrl_fast.tasks.navigation.walk import Walk

WALKS_A_CITY = 40
REVISED_SHARE = 0.05
"""Of the points, at how many a wrong answer comes first."""

# A word of a name with the blank behind it, so that it is the same token wherever a name begins; a word of
# direction; a number; a parenthesis.
_DIRECTIONS = "|".join(sorted((*COMPASS, *RELATIVE), key=len, reverse=True))
PIECES = rf"\b(?:{_DIRECTIONS})\b|\b[A-Z][a-z]+\b ?|\d{{1,2}}|[()]"


def dialogues(rng: np.random.Generator) -> Iterator[Dialogue]:
    """An endless stream of dialogues, a walk each."""
    languages = list(LANGUAGES.values())
    while True:
        town = pretraining_city(int(rng.integers(2**62)))
        for _ in range(WALKS_A_CITY):
            language = languages[int(rng.integers(len(languages)))]
            rail = build_rail(_random_route(town, rng), language.name)
            walk = Walk(rail, language, "text", "exact", verify_iter=2)
            yield _dialogue(walk, rng)


def _random_route(town: City, rng: np.random.Generator) -> Route:
    while True:
        way = random_way(town, rng)
        found = way and route(town, way, "", rng)
        if found:
            return found


def _dialogue(walk: Walk, rng: np.random.Generator) -> Dialogue:
    dialogue = [Message("user", walk.question())]
    while not walk.over:
        step = walk.step
        if rng.random() < REVISED_SHARE:
            actions = sorted(walk.language.actions - {step.action})
            wrong = actions[int(rng.integers(len(actions)))]
            text = prompt.answer(step.observation, step.instruction, wrong)
            dialogue += [Message("assistant", text, trained=False), Message("user", walk.answer(text)[0])]
        text = right_answer(step)
        dialogue.append(Message("assistant", text))
        observation, _ = walk.answer(text)
        if not walk.over:
            dialogue.append(Message("user", observation))
    return dialogue
