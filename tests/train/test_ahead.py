"""Drawing ahead: whose weights draw which batch, what is logged and booked, and the same numbers after a death."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.runtime import checkpoint
from sftrl_fast.study import run as study
from sftrl_fast.train.ahead import Ahead
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.sample import Batch, Sampler

Make = Callable[..., RLArm]


def sampler(arm: RLArm) -> Sampler:
    return Sampler(arm.engine, arm.language, arm.config, arm.seed, arm.num_items)


def answers(batch: Batch) -> list[list[int]]:
    return [turn.answer_ids for g in batch.groups for episode in g.episodes for turn in episode.turns]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that the arm will train on."""
    seen: list[Batch] = []
    real = Ahead.batch

    def batch(self: Ahead, own: Sampler, step: int) -> Batch:
        seen.append(real(self, own, step))
        return seen[-1]

    monkeypatch.setattr(Ahead, "batch", batch)
    return seen


def test_each_batch_is_drawn_by_the_weights_of_one_update_before(
    make_arm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make_arm(**{"rl.overlap": True, "rl.updates": 3})
    seen = watched(monkeypatch)
    other = make_arm()
    expected = [answers(sampler(other).batch(0)), answers(sampler(other).batch(1))]
    metrics = [arm.update(0, 0.0)]
    expected.append(answers(sampler(arm).batch(2)))
    metrics += [arm.update(step, 0.0) for step in (1, 2)]
    assert [answers(batch) for batch in seen] == expected
    assert [each["staleness"] for each in metrics] == [0, 1, 1]
    assert expected[2] != answers(sampler(other).batch(2))
    # On the weights that drew it a batch has ratios of 1, one update later no more.
    assert metrics[0]["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert abs(metrics[1]["ratio_mean"] - 1) > 1e-3


def test_what_is_drawn_ahead_is_booked_when_it_is_trained_on(make_arm: Make) -> None:
    plain, ahead = make_arm(), make_arm(**{"rl.overlap": True, "rl.updates": 2})
    for arm in (plain, ahead):
        arm.update(0, 0.0)
    assert ahead.compute.to_dict() == plain.compute.to_dict()
    ahead.update(1, 0.0)
    assert ahead.compute.samples == 2 * plain.compute.samples


def test_what_the_thread_meets_is_raised_by_the_next_update(
    make_arm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make_arm(**{"rl.overlap": True, "rl.updates": 2})

    def failing(self: Sampler, step: int) -> Batch:
        if step == 1:
            raise UserError("out of luck")
        return real(self, step)

    real = Sampler.batch
    monkeypatch.setattr(Sampler, "batch", failing)
    arm.update(0, 0.0)
    with pytest.raises(UserError, match="out of luck"):
        arm.update(1, 0.0)


def test_rewards_rise_though_answers_are_one_update_old(make_arm: Make) -> None:
    arm = make_arm(**{"rl.overlap": True, "rl.updates": 8})
    rewards = [arm.update(step, step / 8)["reward"] for step in range(8)]
    assert rewards[0] < 0.2
    assert min(rewards[-2:]) > 0.5


class Died(Exception):
    pass


def test_a_run_that_draws_ahead_dies_and_ends_with_the_same_numbers(
    tmp_path: Path, numbers: Callable[[Path], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        overrides={
            "task.verify_iter": 1, "warmup.steps": 1, "warmup.batch": 4, "sft.batch": 8, "rl.overlap": True,
            "rl.updates": 4, "rl.prompts": 4, "rl.group": 8, "rl.lr": 1e-3, "eval.limit": 2,
            "rollout.max_new_tokens": 40, "checkpoint.every_seconds": 0.0, "checkpoint.keep_arms": False,
        }
    )  # fmt: skip
    study.run(config, tmp_path / "whole", "test")
    real_save = checkpoint.save

    def dying_save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        real_save(path, tensors, state)
        if state["step"] in deadly and "seed0/rl" in state["compute"] and "seed0/sft" not in state["compute"]:
            deadly.remove(state["step"])
            raise Died

    deadly = {1, 3}
    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Died):
        study.run(config, tmp_path / "broken", "test")
    with pytest.raises(Died):
        study.resume(tmp_path / "broken")
    study.resume(tmp_path / "broken")
    assert deadly == set()
    whole = numbers(tmp_path / "whole")
    assert numbers(tmp_path / "broken") == whole
    assert [row["staleness"] for row in whole[0] if "staleness" in row] == [0, 1, 1, 1]
