"""What the cards count: ranks 1..13 (A, 2..10, J, Q, K) to numbers, one row a rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sftrl_fast.core import UserError

RANK_NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FIRST_FACE = 11


@dataclass(frozen=True, slots=True)
class Rule:
    """``faces`` are the numbers of J, Q, K; ``sentence`` is how the prompt says so."""

    name: str
    faces: tuple[int, int, int]
    sentence: str

    def numbers(self, ranks: Iterable[int]) -> list[int]:
        return [self.faces[rank - FIRST_FACE] if rank >= FIRST_FACE else rank for rank in ranks]


RULES = {
    rule.name: rule
    for rule in (
        Rule("face10", (10, 10, 10), "J, Q and K count as 10"),
        Rule("face11-13", (11, 12, 13), "J, Q and K count as 11, 12 and 13"),
    )
}


def get_rule(name: str) -> Rule:
    """The rule called ``name``; ``UserError`` for an unknown one."""
    if name not in RULES:
        raise UserError(f"rule={name!r} is unknown; choose one of {', '.join(RULES)}")
    return RULES[name]


def rank_names(ranks: Sequence[int]) -> list[str]:
    return [RANK_NAMES[rank - 1] for rank in ranks]
