"""Ten steps each of SFT, PPO and GRPO give the losses that are committed.

``SFTRL_WRITE_GOLDEN=1 python -m pytest tests/train/test_golden.py`` writes them anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sftrl_fast.config import SFTConfig
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.chat import Chat
from sftrl_fast.rollout.request import BatchEngine, Completion, Request
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.guard import Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.sft import Demonstrations, SFTArm

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
STEPS = 10
TOLERANCE = 1e-3
"""Of the largest loss of a course. Another instruction-set level, of ours or of torch's, moves them far less."""

Make = Callable[..., RLArm]


class Recited(BatchEngine):
    """Answers that depend on the request's key alone: drawn ones would follow the last bits of a machine's sums."""

    def __init__(self, chat: Chat) -> None:
        super().__init__()
        self._chat = chat

    def generate(self, requests: Sequence[Request], _params: object) -> list[Completion]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        rng = np.random.default_rng(digest("golden", *dataclasses.astuple(request.key)))
        tokens = self._chat.answer_ids("".join(rng.choice(list("0123456789abcde+"), 4)))
        return Completion(tokens, [-1.0] * len(tokens), [-1.0] * len(tokens), stopped=True)


def rl_losses(make_arm: Make, recipe: str) -> list[float]:
    # PPO at a rate at which no answer comes near the bounds, where rounding decides whether it has a gradient.
    rates = {"rl.lr": 2e-6, "rl.value_lr": 1e-3} if recipe == "ppo" else {"rl.lr": 2e-4}
    keys = {"rl.recipe": recipe, "task.verify_iter": 2, "rl.minibatches": 2, "rl.old_logprobs": "trainer"}
    arm = make_arm(**keys, **rates)
    arm.engine = Recited(arm.language.chat)
    return [arm.update(step, step / STEPS)["loss"] for step in range(STEPS)]


def sft_losses(make_arm: Make, folder: Path) -> list[float]:
    language = make_arm().language
    config = SFTConfig(batch=8, lr=2e-4)
    env = task_env("sftrl/points-text-train-v1", {})
    demonstrations = Demonstrations(env, language.chat, config, "seed0/sft")
    optimizer = Optimizer(language.model, config)
    arm = SFTArm(language, demonstrations, optimizer, 500, Compute(1), Guard(folder))
    return [arm.update(step, step / STEPS)["loss"] for step in range(STEPS)]


@pytest.mark.parametrize("name", ["sft", "ppo", "grpo"])
def test_ten_steps_give_the_losses_that_are_committed(name: str, make_arm: Make, tmp_path: Path) -> None:
    losses = sft_losses(make_arm, tmp_path) if name == "sft" else rl_losses(make_arm, name)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("SFTRL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: losses}, indent=1) + "\n")
        return
    largest = max(map(abs, golden[name]))
    assert losses == pytest.approx(golden[name], abs=TOLERANCE * largest)
