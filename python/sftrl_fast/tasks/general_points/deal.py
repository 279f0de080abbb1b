"""Which hands stand in which split.

Hands are divided by their *numbers*, not their ranks: under one rule ``10 J`` and ``10 10`` ask the same
question, so both fall on the same side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np

from sftrl_fast.tasks.general_points.rules import get_rule
from sftrl_fast.tasks.general_points.verifier import hands
from sftrl_fast.tasks.seeding import digest, generator, unit

# 80 % of the number hands are for training, and a tenth of those is held back to choose settings on.
VALIDATION_FROM = 0.72
TEST_FROM = 0.80

PARTS = ("train", "validation", "test", "all")


def part_of(numbers: Sequence[int]) -> str:
    """The part a hand belongs to by a hash of its sorted numbers: ``train``, ``validation`` or ``test``."""
    place = unit("points-split", *sorted(numbers))
    if place < VALIDATION_FROM:
        return "train"
    return "validation" if place < TEST_FROM else "test"


@lru_cache(maxsize=64)
def deal(
    rule: str, target: int, part: str, *, with_face: bool | None = None, every_order: bool = False
) -> np.ndarray:
    """The items of a split: solvable hands, ranks in the order they lie, int64 ``[items, 4]``, read-only.

    ``every_order`` lists each hand in all its distinct card orders; otherwise each hand stands once, in an
    order drawn by hash and so fixed for good.
    """
    row = get_rule(rule)
    items: list[tuple[int, ...]] = []
    for ranks in hands(rule, target, with_face=with_face).tolist():
        if part not in ("all", part_of(row.numbers(ranks))):
            continue
        if every_order:
            items.extend(sorted(set(permutations(ranks))))
        else:
            order = generator("points-order", rule, digest(*ranks)).permutation(4)
            items.append(tuple(ranks[i] for i in order))
    table = np.array(items, dtype=np.int64).reshape(-1, 4)
    table.setflags(write=False)
    return table
