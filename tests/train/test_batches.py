from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sftrl_fast.train.batches import draw_items


@given(num_items=st.integers(1, 40), batch=st.integers(1, 17))
def test_every_epoch_visits_every_item_once(num_items: int, batch: int) -> None:
    steps = -(-3 * num_items // batch)
    visits = [pair for step in range(steps) for pair in draw_items(num_items, batch, "seed0/sft", step)]
    for epoch in range(2):
        assert sorted(item for item, when in visits if when == epoch) == list(range(num_items))


def test_a_step_is_the_same_whichever_steps_came_before() -> None:
    assert draw_items(500, 32, "seed0/rl", 40) == draw_items(500, 32, "seed0/rl", 40)
    assert draw_items(500, 32, "seed0/rl", 0) != draw_items(500, 32, "seed1/rl", 0)


def test_epochs_are_shuffled_anew() -> None:
    first = [item for item, _ in draw_items(50, 50, "seed0/sft", 0)]
    second = [item for item, _ in draw_items(50, 50, "seed0/sft", 1)]
    assert first != second
