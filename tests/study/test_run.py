"""What a study takes from the state of its run."""

from __future__ import annotations

from sftrl_fast.config import load_config
from sftrl_fast.study.run import rates
from sftrl_fast.train.state import RunState


def test_rates_beside_success_are_means_over_the_seeds() -> None:
    counted = {"base": 0.5} | {
        f"seed{seed}/{arm}": 0.25 + 0.5 * seed for seed in (0, 1) for arm in ("warmup", "rl", "sft")
    }
    stages = {stage: {"id": {"first_try": rate}, "rule_ood": {}} for stage, rate in counted.items()}
    config = load_config(overrides={"seeds": [0, 1]})
    assert rates(config, RunState(settings=0, rates=stages)) == {
        "first_try": {arm: {"id": 0.5} for arm in ("base", "warmup", "sft", "rl")}
    }


def test_a_task_that_counts_success_alone_has_no_rates_beside_it() -> None:
    stages = {
        stage: {"id": dict[str, float]()} for stage in ("base", "seed0/warmup", "seed0/rl", "seed0/sft")
    }
    assert rates(load_config(overrides={"seeds": [0]}), RunState(settings=0, rates=stages)) == {}
