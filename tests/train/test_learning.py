"""Every row of the table learns: a few updates of the shipped model on a task made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sftrl_fast.algo.recipes import RECIPES
from sftrl_fast.train.rl import RLArm

UPDATES = 6


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_raises_the_reward(name: str, make_arm: Callable[..., RLArm]) -> None:
    keys: dict[str, Any] = {"rl.value_lr": 0.02} if RECIPES[name].critic else {}
    arm = make_arm(**{"rl.recipe": name, **keys})
    rewards = [arm.update(step, step / UPDATES)["reward"] for step in range(UPDATES)]
    assert rewards[0] < 0.2
    assert min(rewards[-3:]) > 0.5
