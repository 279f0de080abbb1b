"""Headings and the words for them: the two languages an action can be said in.

A heading is in degrees, clockwise from north. The thresholds are the published code's.
"""

from __future__ import annotations

from dataclasses import dataclass

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
RELATIVE = ("left", "right", "slightly left", "slightly right")

FORWARD = "forward()"
STOP = "stop()"
SHARP = 45.0
"""A change of heading beyond this many degrees is left or right, one within it slightly so."""


@dataclass(frozen=True, slots=True)
class Language:
    """The words ``turn_direction(...)`` takes."""

    name: str
    words: tuple[str, ...]

    @property
    def actions(self) -> frozenset[str]:
        """Every action of the language."""
        return frozenset({FORWARD, STOP, *map(turn, self.words)})


LANGUAGES = {
    language.name: language for language in (Language("absolute", COMPASS), Language("relative", RELATIVE))
}


def turn(word: str) -> str:
    return f"turn_direction({word})"


def compass(heading: float) -> str:
    """The nearest of the eight compass words."""
    return COMPASS[int((heading % 360 + 22.5) // 45) % 8]


def wrapped(degrees: float) -> float:
    """The same angle in [-180, 180)."""
    return (degrees + 180) % 360 - 180


def relative(before: float, after: float, *, wrap: bool = True) -> str:
    """The turn from heading ``before`` to ``after``; no change at all is ``slightly left``, as published.

    ``wrap=False`` takes the plain difference, as the published code does: there 350 to 10 is ``left``.
    """
    change = wrapped(after - before) if wrap else after - before
    if abs(change) > SHARP:
        return "left" if change < 0 else "right"
    return "slightly left" if change <= 0 else "slightly right"
