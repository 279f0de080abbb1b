"""Pages come and go without getting lost or handed out twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.rollout.kv_cache import PAGE_SIZE, KVCache, pages_for


def cache(pages: int) -> KVCache:
    return KVCache(
        layers=2,
        kv_heads=3,
        head_dim=4,
        tokens=pages * PAGE_SIZE,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )


def test_shapes_and_rounding_up() -> None:
    made = KVCache(
        layers=2,
        kv_heads=3,
        head_dim=4,
        tokens=PAGE_SIZE + 1,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert made.pages == made.free == 2
    assert [tuple(part.shape) for part in (*made.keys, *made.values)] == [(2, 3, PAGE_SIZE, 4)] * 4
    assert [pages_for(n) for n in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, 1, 1, 2]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 99))
def test_no_page_is_held_twice_and_all_come_back(sizes: list[int], seed: int) -> None:
    pool, random = cache(24), np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for size in sizes:
        while size > pool.free:
            pool.give(held.pop(int(random.integers(len(held)))))
        held.append(pool.take(size))
        everything = np.concatenate(held)
        assert len(np.unique(everything)) == len(everything) == pool.pages - pool.free
    for pages in held:
        pool.give(pages)
    assert pool.free == pool.pages
    assert sorted(pool.take(24).tolist()) == list(range(24))


def test_giving_back_what_is_not_held_is_a_fault() -> None:
    pool = cache(4)
    pages = pool.take(2)
    pool.give(pages)
    with pytest.raises(AssertionError, match="twice"):
        pool.give(pages)
    with pytest.raises(AssertionError, match="makes room"):
        pool.take(5)


def test_low_pages_are_used_again_first() -> None:
    pool = cache(8)
    first = pool.take(2)
    assert first.tolist() == [0, 1]
    pool.give(first)
    assert pool.take(1).tolist() == [0]
