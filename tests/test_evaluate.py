from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import evaluate_model, subset, task_env


@given(strata=st.lists(st.integers(0, 4), min_size=1, max_size=200), limit=st.integers(0, 250))
def test_a_subset_keeps_the_proportions_to_within_one(strata: list[int], limit: int) -> None:
    chosen = subset(strata, limit, "some-set")
    size = len(strata) if limit == 0 else min(limit, len(strata))
    assert len(set(chosen)) == len(chosen) == size
    assert chosen == sorted(chosen)
    for stratum in set(strata):
        share = strata.count(stratum) / len(strata) * size
        assert abs(sum(strata[i] == stratum for i in chosen) - share) <= 1


def test_a_subset_is_fixed_and_differs_from_set_to_set() -> None:
    strata = np.zeros(500, dtype=int)
    assert subset(strata, 50, "a") == subset(strata, 50, "a")
    assert subset(strata, 50, "a") != subset(strata, 50, "b")


def test_evaluating_twice_gives_the_same_successes() -> None:
    config = load_config(overrides={"eval.limit": 20, "task.verify_iter": 2, "rollout.max_sequences": 7})
    sets = {"seen": "sftrl/points-text-seen-v1"}
    first, second = evaluate_model(config, sets)["seen"], evaluate_model(config, sets)["seen"]
    assert first == second
    assert len(first.successes) == 20
    assert 1 <= first.attempts <= 2
    # The shipped model solves about a fifth of these; none of twenty would be a broken path, not bad luck.
    assert any(first.successes)


def test_a_set_that_is_not_registered_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="sftrl/points-text-none-v1"):
        task_env("sftrl/points-text-none-v1", {})


def test_options_cannot_change_what_an_id_means() -> None:
    with pytest.raises(UserError, match=r"task\.options\.part"):
        task_env("sftrl/points-text-id-v1", {"part": "train"})
