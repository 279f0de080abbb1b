from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import evaluate_model, load_configured, make_engine, subset, task_env


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


def test_the_backend_is_the_native_engine_where_it_covers_the_model(caplog: pytest.LogCaptureFixture) -> None:
    for wanted, made in (("auto", "native"), ("native", "native"), ("hf", "hf")):
        config = load_config(overrides={"rollout.backend": wanted})
        assert make_engine(load_configured(config), config).name == made
    assert caplog.records == []


def test_a_cache_that_a_dialogue_outgrows_is_an_error_and_not_an_end_of_the_dialogue() -> None:
    def items(cache_tokens: int) -> int:
        options = {"rollout.cache_tokens": cache_tokens, "task.verify_iter": 3, "eval.limit": 4}
        config = load_config(overrides={**options, "rollout.max_new_tokens": 40})
        return len(evaluate_model(config, {"id": config.task.eval["id"]})["id"].successes)

    assert items(1024) == 4
    with pytest.raises(UserError, match=r"exceed the cache; needed: rollout\.cache_tokens of at least"):
        items(112)


def test_a_model_that_the_engine_does_not_know_falls_back_aloud_or_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    auto, native = (load_config(overrides={"rollout.backend": name}) for name in ("auto", "native"))
    language = load_configured(auto)
    language.model.model.layers[0].register_forward_hook(lambda *_: None)
    assert make_engine(language, auto).name == "hf"
    (record,) = caplog.records
    assert "forward hooks" in record.getMessage()
    with pytest.raises(UserError, match=r"rollout\.backend='native'.*forward hooks"):
        make_engine(language, native)


def test_both_backends_evaluate_alike() -> None:
    sets = {"seen": "sftrl/points-text-seen-v1"}
    small: dict[str, Any] = {"eval.limit": 30, "task.verify_iter": 2}
    native, hf = (
        evaluate_model(load_config(overrides={**small, "rollout.backend": name}), sets)["seen"]
        for name in ("native", "hf")
    )
    assert native == hf
