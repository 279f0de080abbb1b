"""Demonstrations: right, fixed, and drawn among all solutions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks import TASKS
from sftrl_fast.tasks.general_points.verifier import Outcome, solve

SMALL = [row.id for row in TASKS if not row.every_order]


@pytest.mark.parametrize("env_id", SMALL)
@pytest.mark.parametrize("draw", [0, 1])
def test_every_demonstration_is_right_and_reads_the_cards(env_id: str, draw: int) -> None:
    env: Any = gymnasium.make(env_id)
    answers = [env.demonstration(index, draw) for index in range(env.num_items)]
    verdicts = env.judge(answers, np.arange(env.num_items))
    assert (verdicts.outcome == Outcome.RIGHT).all()
    assert (verdicts.reward == 5).all()
    assert verdicts.cards_ok.all()


def test_a_draw_is_the_same_each_time_and_in_both_forms() -> None:
    one: Any = gymnasium.make(SMALL[0])
    many: Any = gymnasium.make_vec(SMALL[0], num_envs=2)
    for index in range(one.num_items):
        assert one.demonstration(index, 3) == one.demonstration(index, 3) == many.demonstration(index, 3)


def test_draws_reach_every_solution() -> None:
    env: Any = gymnasium.make(SMALL[0])
    counts = [len(solve(env.rule.numbers(ranks), 24)) for ranks in env.items.tolist()]
    index = next(i for i, count in enumerate(counts) if 3 <= count <= 6)
    drawn = {env.demonstration(index, draw) for draw in range(200)}
    # Each solution is also written in more than one order.
    assert len(drawn) > counts[index]


def test_items_that_share_numbers_do_not_share_their_draws() -> None:
    env: Any = gymnasium.make("sftrl/points-text-train-v1")
    counts = [len(solve(env.rule.numbers(ranks), 24)) for ranks in env.items[::24].tolist()]
    hand = env.items[24 * int(np.argmax(counts))]
    same = np.flatnonzero((np.sort(env.items, axis=1) == np.sort(hand)).all(axis=1))
    assert len({env.demonstration(int(index)).split("formula")[1] for index in same}) > 1


def test_demonstrating_an_item_outside_the_set_is_refused() -> None:
    env: Any = gymnasium.make(SMALL[0])
    with pytest.raises(UserError, match=f"index={env.num_items} is outside the set"):
        env.demonstration(env.num_items)
