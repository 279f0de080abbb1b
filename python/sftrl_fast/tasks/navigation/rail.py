"""A route as a rail: what is seen at each point, what the instructions say, and the expert's action.

Everything a step needs is computed here once; a step of the environment is a look-up and a comparison. Rules of
the published code; see :mod:`~sftrl_fast.tasks.navigation.rules` for what ``wrap`` changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sftrl_fast.tasks.navigation.dataset import Route, Spot
from sftrl_fast.tasks.navigation.rules import FORWARD, STOP, compass, relative, turn

NOTHING_SEEN = "No landmarks nearby"
NO_LANDMARK = "No landmark nearby"
"""What a key point without a landmark is said to have, in the published data."""
INTERSECTION = "You observe an intersection"


@dataclass(frozen=True, slots=True)
class Step:
    """A point of the rail."""

    observation: str
    landmark: str
    """The observation without its words about an intersection."""
    intersection: bool
    instruction: str
    number: int
    """Of the instruction, from 1."""
    action: str
    spot: Spot


@dataclass(frozen=True, slots=True)
class Rail:
    instructions: tuple[str, ...]
    steps: tuple[Step, ...]


def build_rail(route: Route, language: str, *, wrap: bool = True) -> Rail:
    """The rail of ``route`` with actions in ``language`` (a key of ``rules.LANGUAGES``)."""
    keys = [spot for spot in route.spots[1:] if spot.key]
    headings = [route.spots[0].heading, *(spot.heading for spot in keys)]
    turns = [relative(a, b, wrap=wrap) for a, b in pairwise(headings)]
    instructions = _instructions(keys, turns)
    words = [compass(spot.heading) for spot in keys] if language == "absolute" else turns
    steps, block = [], -1
    for place, spot in enumerate(route.spots):
        last = place == len(route.spots) - 1
        block += spot.key
        # Instructions come in pairs, 2b and 2b + 1 for block b: the turn to its key point, then the way there.
        line = 2 * block - 1 if last else 2 * block if spot.key else 2 * block + 1
        landmark = spot.landmark if spot.key and place else NOTHING_SEEN
        intersection = spot.key and place > 0 and not last
        steps.append(
            Step(
                f"{landmark}; {INTERSECTION}" if intersection else landmark,
                landmark,
                intersection,
                instructions[line],
                line + 1,
                STOP if last else turn(words[block]) if spot.key else FORWARD,
                spot,
            )
        )
    return Rail(instructions, tuple(steps))


def _instructions(keys: list[Spot], turns: list[str]) -> tuple[str, ...]:
    """Two sentences a key point."""
    lines = []
    for block, (spot, word) in enumerate(zip(keys, turns, strict=True)):
        start = "First, turn" if block == 0 else "Turn"
        lines.append(f"{start} {word} to face {compass(spot.heading)}.")
        goal = "destination" if block == len(keys) - 1 else "next intersection"
        where = "" if has_no_landmark(spot.landmark) else f" where {spot.landmark}"
        lines.append(f"Move forward until you reach {goal}{where}.")
    return tuple(lines)


def has_no_landmark(phrase: str) -> bool:
    return phrase.lower().startswith(("no landmark nearby", "no landmarks nearby")) or not phrase
