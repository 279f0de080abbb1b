"""The expert that writes the demonstrations of SFT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.formula import reorder, worked
from sftrl_fast.tasks.general_points.rules import Rule
from sftrl_fast.tasks.general_points.verifier import solve
from sftrl_fast.tasks.seeding import digest


@lru_cache(maxsize=4096)
def _solutions(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    return tuple(solve(numbers, target))


def demonstrate(
    ranks: Sequence[int], rule: Rule, target: int, *, key: tuple[str | int, ...], steps: bool = False
) -> str:
    """A right answer to the hand ``ranks`` (length 4), in the shape the prompt asks for.

    The hash of ``key`` picks one of the hand's solutions (:func:`~sftrl_fast.solve`) and the order in which
    its terms are written. It is right in exact arithmetic, which the floats of the ``reference`` rewards do
    not always honour. With ``steps`` the answer works the formula out, operation by operation, before it says it.
    """
    solutions = _solutions(tuple(sorted(rule.numbers(ranks))), target)
    rng = np.random.default_rng(digest("points-demonstration", *key))
    formula = reorder(solutions[int(rng.integers(len(solutions)))], rng)
    return prompt.answer(ranks, rule, formula, target, worked(formula) if steps else None)
