"""Which items a step trains on: a pure function of key and step, so that a resumed run needs no cursor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sftrl_fast.tasks.seeding import digest


@lru_cache(maxsize=4)
def _order(num_items: int, key: str, epoch: int) -> np.ndarray:
    return np.random.default_rng(digest("order", num_items, key, epoch)).permutation(num_items)


def draw_items(num_items: int, batch: int, key: str, step: int) -> list[tuple[int, int]]:
    """``batch`` pairs (item, epoch) of step ``step``: each epoch visits every item once, shuffled anew.

    ``key`` names the seed and the arm, so that no two arms see the items in one order.
    """
    visits = (divmod(place, num_items) for place in range(step * batch, (step + 1) * batch))
    return [(int(_order(num_items, key, epoch)[place]), epoch) for epoch, place in visits]
