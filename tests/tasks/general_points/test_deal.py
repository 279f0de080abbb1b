"""Which hands stand in which set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import permutations
from math import factorial
from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.tasks import TASKS
from sftrl_fast.tasks.general_points.deal import deal, part_of
from sftrl_fast.tasks.general_points.rules import RULES
from sftrl_fast.tasks.general_points.verifier import hands, solve

ROWS = {row.id: row for row in TASKS}


def make(env_id: str) -> Any:
    return gymnasium.make(env_id)


def items_of(env_id: str) -> np.ndarray:
    return make(env_id).items


def number_hands(env_id: str) -> set[tuple[int, ...]]:
    rule = RULES[ROWS[env_id].rule]
    return {tuple(sorted(rule.numbers(ranks))) for ranks in items_of(env_id).tolist()}


def rank_hands(env_id: str) -> list[tuple[int, ...]]:
    return [tuple(sorted(ranks)) for ranks in items_of(env_id).tolist()]


# Solvable rank hands at target 24: 1,236 when faces are 10 and 796 with a face card when they are 11, 12, 13.
# The three parts are what the split's hash makes of the 1,236.
SIZES = {
    "sftrl/points-text-validation-v1": 98,
    "sftrl/points-text-seen-v1": 876,
    "sftrl/points-text-id-v1": 262,
    "sftrl/points-text-rule-ood-v1": 796,
    "sftrl/points-text-all-once-v1": 1236,
}


@pytest.mark.parametrize(("env_id", "size"), SIZES.items())
def test_set_has_its_size_and_each_hand_once(env_id: str, size: int) -> None:
    dealt = rank_hands(env_id)
    assert len(dealt) == len(set(dealt)) == size == make(env_id).num_items


def test_train_validation_and_test_share_no_number_hand_and_miss_none() -> None:
    parts = [number_hands(f"sftrl/points-text-{name}-v1") for name in ("train", "validation", "id")]
    everything = number_hands("sftrl/points-text-all-v1")
    assert len(everything) == 566
    assert sum(map(len, parts)) == 566
    assert set().union(*parts) == everything


def test_training_hands_are_about_four_fifths_with_validation() -> None:
    trained = number_hands("sftrl/points-text-train-v1") | number_hands("sftrl/points-text-validation-v1")
    # Four standard deviations of 566 draws at 0.8.
    assert abs(len(trained) - 0.8 * 566) < 4 * (566 * 0.8 * 0.2) ** 0.5


def test_a_hand_keeps_its_part_whatever_order_it_lies_in() -> None:
    for numbers in hands("face10", with_face=False)[:50].tolist():
        assert len({part_of(order) for order in permutations(numbers)}) == 1


@pytest.mark.parametrize("name", ["train", "all"])
def test_every_order_of_every_hand_is_dealt_once(name: str) -> None:
    dealt = [tuple(ranks) for ranks in items_of(f"sftrl/points-text-{name}-v1").tolist()]
    assert len(dealt) == len(set(dealt))
    orders: dict[tuple[int, ...], int] = {}
    for ranks in dealt:
        hand = tuple(sorted(ranks))
        orders[hand] = orders.get(hand, 0) + 1
    for hand, count in orders.items():
        repeats = np.unique(hand, return_counts=True)[1]
        assert count == factorial(4) // np.prod([factorial(n) for n in repeats])
    once = {"train": "seen", "all": "all-once"}[name]
    assert set(orders) == set(rank_hands(f"sftrl/points-text-{once}-v1"))


@pytest.mark.parametrize("env_id", ["sftrl/points-text-id-v1", "sftrl/points-text-rule-ood-v1"])
def test_every_dealt_hand_can_be_solved(env_id: str) -> None:
    assert all(solve(numbers, 24) for numbers in number_hands(env_id))


def test_shifted_hands_all_hold_a_face_card() -> None:
    assert (items_of("sftrl/points-text-rule-ood-v1") >= 11).any(axis=1).all()
    assert (make("sftrl/points-text-rule-ood-v1").strata() >= 1).all()


@pytest.mark.parametrize("env_id", ROWS)
def test_strata_count_the_face_cards(env_id: str) -> None:
    env = make(env_id)
    counted = [sum(rank in (11, 12, 13) for rank in ranks) for ranks in env.items.tolist()]
    assert env.strata().tolist() == counted


def test_cards_do_not_lie_in_rank_order() -> None:
    dealt = items_of("sftrl/points-text-id-v1")
    in_order = (np.diff(dealt, axis=1) >= 0).all(axis=1).mean()
    assert in_order < 0.25


def test_items_cannot_be_overwritten() -> None:
    with pytest.raises(ValueError, match="read-only"):
        items_of("sftrl/points-text-id-v1")[0, 0] = 1


def test_another_process_deals_the_same_hands() -> None:
    program = (
        "import hashlib\n"
        "from sftrl_fast.tasks.general_points.deal import deal\n"
        "train = deal('face10', 24, 'train', every_order=True)\n"
        "shifted = deal('face11-13', 24, 'all', with_face=True)\n"
        "print(hashlib.sha256(train.tobytes() + shifted.tobytes()).hexdigest())"
    )
    environments = [os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)} for seed in "12"]
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        for env in environments
    }
    train = deal("face10", 24, "train", every_order=True)
    shifted = deal("face11-13", 24, "all", with_face=True)
    assert printed == {hashlib.sha256(train.tobytes() + shifted.tobytes()).hexdigest()}
