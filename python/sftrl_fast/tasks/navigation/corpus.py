"""Dialogues for pre-training a ``tiny`` model: walks through small cities that no set uses, and drills before them.

Walks are in both languages of action, their places all new: so the model learns the form, to find its place in the
instructions and to follow the words of the question. A share of the answers is wrong first; those are shown and not
trained. No city of :data:`~sftrl_fast.tasks.navigation.city.CITIES` is walked.

A walk asks a small model to copy names over hundreds of tokens, which it learns sooner over a few dozen. So the stream
begins with drills: to repeat some lines, to say line k of a list. Then come the first points of walks, then whole ones.

A model that walks in words learns to walk by street views from short walks, for it has to learn only what is not told
there: that a sign is in sight.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from sftrl_fast.core import Dialogue, Image, Message
from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.city import City, pretraining_city, random_way, route
from sftrl_fast.tasks.navigation.dataset import Route
from sftrl_fast.tasks.navigation.expert import right_answer
from sftrl_fast.tasks.navigation.names import Names
from sftrl_fast.tasks.navigation.rail import build_rail
from sftrl_fast.tasks.navigation.render import OFFSETS, street_view, view_with
from sftrl_fast.tasks.navigation.rules import COMPASS, LANGUAGES, RELATIVE, wrapped
from sftrl_fast.tasks.navigation.walk import Walk

WALKS_A_CITY = 40
REVISED_SHARE = 0.05
"""Of the points, at how many a wrong answer comes first."""

WORDING = 1000
"""Whole walks at the head of the stream, from which the tokenizer learns the wording."""
# From this dialogue of the stream on: the share of drills, and the most points a walk shows.
STAGES = ((0, 0.0, 20), (WORDING, 1.0, 0), (13_000, 0.3, 4), (16_000, 0.05, 20))
DRILL_LINES = 6
REPEAT_SHARE = 0.7
"""Of the drills, how many ask for every line again: each name of them is a token trained to be found and copied."""

PICTURE_SIZE = 224
"""Pixels a side of the four views."""
SEEN_POINTS = 9
"""Most points of a walk by pictures: each point is a picture to encode."""

# A word of a name with the blank behind it, so that it is the same token wherever a name begins; a word of
# direction; a number; a parenthesis.
_DIRECTIONS = "|".join(sorted((*COMPASS, *RELATIVE), key=len, reverse=True))
PIECES = rf"\b(?:{_DIRECTIONS})\b|\b[A-Z][a-z]+\b ?|\d{{1,2}}|[()]"


def dialogues(rng: np.random.Generator) -> Iterator[Dialogue]:
    """An endless stream of dialogues, a drill or a walk each; see :data:`STAGES`."""
    walks = _walks(rng)
    for number in count():
        _, drills, points = next(stage for stage in reversed(STAGES) if stage[0] <= number)
        if rng.random() < drills:
            yield _drill(rng)
        else:
            walk, _ = next(walks)
            yield _dialogue(walk, points, rng)


def seen_dialogues(rng: np.random.Generator) -> Iterator[Dialogue]:
    """An endless stream of walks by street views, whole ones of at most :data:`SEEN_POINTS` points."""
    for walk, city in _walks(rng, look="image"):
        if len(walk.rail.steps) <= SEEN_POINTS:
            yield _dialogue(walk, SEEN_POINTS, rng, city)


def views(rng: np.random.Generator) -> Iterator[tuple[Image, NDArray[np.int64]]]:
    """An endless stream of street views and what is in each of the four, ``[2, 2]``: 1 for a street that leads there,
    and 2 more for a landmark's sign."""
    for walk, city in _walks(rng, look="image"):
        spot = walk.rail.steps[int(rng.integers(len(walk.rail.steps)))].spot
        headings = [spot.heading + offset for offset in OFFSETS["exact"]]
        shown = [int(any(abs(wrapped(arm - heading)) <= 45 for arm in spot.arms)) for heading in headings]
        if spot.sight is not None:
            shown[view_with(spot, headings)] += 2
        yield street_view(spot, city, PICTURE_SIZE), np.array(shown).reshape(2, 2)


def _drill(rng: np.random.Generator) -> Dialogue:
    """Repeat the lines of a list, or say line k of it."""
    names = Names(rng)
    lines = [_line(names, rng) for _ in range(int(rng.integers(1, DRILL_LINES + 1)))]
    if rng.random() < REPEAT_SHARE:
        text = "\n".join(lines)
        return [Message("user", text), Message("assistant", text)]
    chosen = int(rng.integers(len(lines)))
    numbered = "\n".join(f"{place}. {line}" for place, line in enumerate(lines, start=1))
    return [Message("user", f"{numbered}\n{chosen + 1}. "), Message("assistant", lines[chosen])]


def _line(names: Names, rng: np.random.Generator) -> str:
    """A sentence as instructions or observations have them."""
    side, turned = str(rng.choice(["left", "right"])), str(rng.choice(RELATIVE))
    kind = rng.random()
    if kind < 0.3:
        return f"Turn {turned} to face {rng.choice(COMPASS)}."
    if kind < 0.6:
        return f"Move forward until you reach next intersection where {names.place()} is on your {side}."
    return f"{names.place()} is on your {side}"


def _walks(rng: np.random.Generator, look: str = "text") -> Iterator[tuple[Walk, str]]:
    """Walks and the cities they lead through."""
    languages = list(LANGUAGES.values())
    while True:
        town = pretraining_city(int(rng.integers(2**62)))
        for _ in range(WALKS_A_CITY):
            language = languages[int(rng.integers(len(languages)))]
            rail = build_rail(_random_route(town, rng), language.name)
            yield Walk(rail, language, look, "exact", verify_iter=2), town.name


def _random_route(town: City, rng: np.random.Generator) -> Route:
    while True:
        way = random_way(town, rng)
        found = way and route(town, way, "", rng)
        if found:
            return found


def _dialogue(walk: Walk, points: int, rng: np.random.Generator, city: str = "") -> Dialogue:
    """The first ``points`` points of a walk, seen if ``city`` says how."""

    def asked(text: str) -> Message:
        return Message("user", text, image=street_view(walk.step.spot, city, PICTURE_SIZE) if city else None)

    dialogue = [asked(walk.question())]
    while True:
        step = walk.step
        if rng.random() < REVISED_SHARE:
            actions = sorted(walk.language.actions - {step.action})
            wrong = actions[int(rng.integers(len(actions)))]
            text = prompt.answer(step.observation, step.instruction, wrong)
            dialogue += [Message("assistant", text, trained=False), asked(walk.answer(text)[0])]
        text = right_answer(step)
        dialogue.append(Message("assistant", text))
        observation, _ = walk.answer(text)
        if walk.over or walk.place >= points:
            return dialogue
        dialogue.append(asked(observation))
