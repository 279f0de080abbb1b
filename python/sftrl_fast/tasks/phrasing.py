"""In which words an item is asked: one wording, many for training, or one that training never has."""

from __future__ import annotations

from collections.abc import Sequence

from sftrl_fast.tasks.seeding import digest

PHRASINGS = ("plain", "varied", "held-out")
"""What the keyword ``phrasing`` takes: the first wording; one of all but the last by the hash of the item; the last."""


def wording(phrasing: str, wordings: Sequence[str], *item: str | int) -> str:
    """The wording, of at least two, in which ``item`` is asked, the same one each time."""
    match phrasing:
        case "varied":
            return wordings[digest("phrasing", *item) % (len(wordings) - 1)]
        case "held-out":
            return wordings[-1]
    return wordings[0]
