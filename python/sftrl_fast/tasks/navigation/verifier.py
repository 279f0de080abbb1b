"""Verdicts on the answers at a point of a rail: one look-up and one comparison each. Any text gets a verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from sftrl_fast.tasks.navigation.rail import Step
from sftrl_fast.tasks.navigation.rules import Language

REWARDS = ("exact", "reference")
RIGHT, WRONG, WRONG_INTERSECTION = 1.0, -1.0, -1.5
BUDGET_USED_UP = -1.0
"""Added to the last wrong try at a point."""


class Outcome(IntEnum):
    """What was first found about an answer, in the order malformed, intersection, action."""

    RIGHT = 0
    WRONG_ACTION = 1
    FOREIGN_ACTION = 2
    """An action that the language of the question does not have, such as a turn said in the other one."""
    MISSED_INTERSECTION = 3
    """The action is wrong and an intersection was not noticed."""
    IMAGINED_INTERSECTION = 4
    """The action is wrong and the answer sees an intersection where none is."""
    MALFORMED = 5
    """No action can be read."""


_MESSAGES = {
    Outcome.WRONG_ACTION: "the action is wrong here",
    Outcome.FOREIGN_ACTION: "there is no such action",
    Outcome.MISSED_INTERSECTION: "you overlooked the intersection",
    Outcome.IMAGINED_INTERSECTION: "there is no intersection here",
    Outcome.MALFORMED: "the answer names no action",
}


def _field(name: str) -> re.Pattern[str]:
    return re.compile(rf"""["']{name}["']\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)')""")


_ACTION, _OBSERVATION = _field("action"), _field("current observation")


@dataclass(frozen=True, slots=True)
class StepVerdict:
    reward: float
    """Without the price of a used-up budget, which the episode adds."""
    outcome: Outcome
    message: str
    """The verifier's words after a wrong answer."""


_RIGHT = StepVerdict(RIGHT, Outcome.RIGHT, "")


def verify(text: str, step: Step, language: Language, rewards: str = "exact") -> StepVerdict:
    """Judge the answer ``text`` at ``step``. No text makes it raise.

    The last ``action`` counts, in single or double quotes; it must be the expert's, letter by letter. If it is
    wrong and the answer is also wrong about an intersection, that costs 1.5 in place of 1: ``exact`` compares with
    what the point shows, ``reference`` with the landmark's words alone, as the published code does; there,
    naming an intersection is as good as always an error.
    """
    action = _last(_ACTION, text)
    if action == step.action:
        return _RIGHT
    if action is None:
        return _wrong(Outcome.MALFORMED)
    told = "intersection" in (_last(_OBSERVATION, text) or "")
    shown = step.intersection if rewards == "exact" else "intersection" in step.landmark
    if told != shown:
        return _wrong(Outcome.MISSED_INTERSECTION if shown else Outcome.IMAGINED_INTERSECTION)
    return _wrong(Outcome.WRONG_ACTION if action in language.actions else Outcome.FOREIGN_ACTION)


def _wrong(outcome: Outcome) -> StepVerdict:
    about_intersection = outcome in (Outcome.MISSED_INTERSECTION, Outcome.IMAGINED_INTERSECTION)
    return StepVerdict(WRONG_INTERSECTION if about_intersection else WRONG, outcome, _MESSAGES[outcome])


def _last(field: re.Pattern[str], text: str) -> str | None:
    """The value of the last such key, without blanks around it."""
    values = field.findall(text)
    return "".join(values[-1]).strip() if values else None
