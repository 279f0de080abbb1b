"""Steps that are not finite: skipped, counted, kept for a look; three in a row end the run with a checkpoint."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftrl_fast.config import load_config
from sftrl_fast.core import NotFiniteError, Row, UserError
from sftrl_fast.runtime import checkpoint
from sftrl_fast.train import run as train
from sftrl_fast.train import score, sft
from sftrl_fast.train.guard import LIMIT, Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.rl import RLArm

Make = Callable[..., RLArm]


def weights(arm: RLArm) -> list[torch.Tensor]:
    return [p.detach().clone() for p in arm.optimizer.parameters.values()]


def poison(monkeypatch: pytest.MonkeyPatch, owner: Any, which: Callable[[int], bool]) -> None:
    """Make those calls of ``owner.token_logprobs``, counted from 0, that ``which`` names return NaN."""
    real = owner.token_logprobs
    calls = iter(range(10**9))

    def token_logprobs(*args: Any, **keys: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logp, entropy = real(*args, **keys)
        return (logp * math.nan, entropy) if which(next(calls)) else (logp, entropy)

    monkeypatch.setattr(owner, "token_logprobs", token_logprobs)


def test_a_step_that_is_not_finite_changes_nothing_and_its_batch_is_kept(
    make_arm: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arm = make_arm(**{"rl.epochs": 3})
    poison(monkeypatch, score, lambda call: call == 1)
    whole = make_arm(**{"rl.epochs": 2})
    with caplog.at_level(logging.WARNING):
        metrics = arm.update(0, 0.0)
    assert (metrics["skipped"], arm.guard.skipped, arm.guard.in_a_row) == (1, 1, 0)
    assert math.isfinite(metrics["loss"])
    assert "optimizer step skipped: the loss is nan" in caplog.text
    (kept,) = arm.guard.folder.iterdir()
    batch = json.loads(kept.read_text())
    assert batch["reason"] == "the loss is nan"
    assert len(batch["rows"]) == 32
    assert len(batch["rows"][0]["advantages"]) == 1
    # Of three passes two were taken, and so it is what two passes make (orders differ by rounding only).
    monkeypatch.undo()
    whole.update(0, 0.0)
    assert arm.optimizer.steps == whole.optimizer.steps == 2
    for one, other in zip(weights(arm), weights(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_three_in_a_row_end_the_update_with_the_weights_as_they_were(
    make_arm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make_arm(**{"rl.epochs": 9})
    before = weights(arm)
    poison(monkeypatch, score, lambda call: call >= 0)
    metrics = arm.update(0, 0.0)
    assert metrics["skipped"] == LIMIT
    assert arm.guard.exhausted
    assert math.isnan(metrics["loss"])
    assert all(torch.equal(one, other) for one, other in zip(before, weights(arm), strict=True))


def test_an_infinite_gradient_of_a_finite_loss_is_met_too() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, load_config().rl)
    before = model.weight.detach().clone()

    def take() -> None:
        (model.weight * math.inf).sum().backward()
        optimizer.step(0.0)

    guard = Guard(Path("unused"))
    with pytest.raises(NotFiniteError, match="norm of the gradient"):
        take()
    optimizer.discard()
    assert torch.equal(model.weight, before)
    assert optimizer.steps == 0
    assert not guard.exhausted


def test_what_is_kept_can_be_read_though_it_is_not_finite(tmp_path: Path) -> None:
    optimizer = Optimizer(torch.nn.Linear(1, 1), load_config().rl)
    row = Row([1, 2], [False, True], 1, [1], [math.nan], [-math.inf])

    def take() -> None:
        raise NotFiniteError("it is nan")

    guard = Guard(tmp_path / "skipped")
    assert guard.attempt("step", [row], optimizer, take) is None
    kept = json.loads((tmp_path / "skipped" / "step.json").read_text())["rows"][0]
    assert (kept["sampled_logprobs"], kept["old_logprobs"]) == (["nan"], ["-inf"])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While the list holds True, every SFT step meets NaN."""
    on = [True]
    poison(monkeypatch, sft, lambda call: call >= 0 and on[0])
    return on


def test_a_run_stops_with_a_checkpoint_and_one_clear_error_and_can_go_on(
    tmp_path: Path, failing: list[bool]
) -> None:
    small = {
        "task.verify_iter": 1, "warmup.steps": 5, "warmup.batch": 4, "sft.batch": 4, "rl.updates": 1,
        "rl.prompts": 2, "rl.group": 2, "eval.limit": 2, "rollout.max_new_tokens": 8, "checkpoint.keep_arms": False,
    }  # fmt: skip
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"seed0/warmup, step 3: 3 optimizer steps in a row .*warmup\.lr"):
        train.run(load_config(overrides=small), folder, "test")
    _, state = checkpoint.load(folder / "checkpoint.safetensors")
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (3, 3, 0)
    assert len(list((folder / "skipped").iterdir())) == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if line.get("stage") == "warmup" and "skipped" in line] == [
        1,
        1,
        1,
    ]
    failing[0] = False
    done = train.resume(folder)
    assert not done.stopped
    assert done.state.skipped == 3
