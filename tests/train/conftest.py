from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.algo.recipes import recipe, resolved
from sftrl_fast.config import Config, load_config
from sftrl_fast.evaluate import make_engine, task_env
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.models.value_head import ValueHead
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.train.ahead import Ahead
from sftrl_fast.train.guard import Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.rl import RLArm


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def numbers() -> Callable[[Path], tuple[Any, Any]]:
    """What two runs must share: a run folder's metrics and results, times aside."""

    def read(folder: Path) -> tuple[Any, Any]:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return _without_times(metrics), _without_times(json.loads((folder / "results.json").read_text()))

    return read


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key != "seconds"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


class Digits(gymnasium.Env[str, str]):
    """A task that a few updates can learn: the reward of an answer is the share of digits in its first four characters,
    and more than a half ends the episode."""

    observation_space = action_space = gymnasium.spaces.Text(200, charset=string.printable)
    num_items = 8

    def __init__(self, verify_iter: int = 1) -> None:
        self.attempts = verify_iter

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        super().reset(seed=seed)
        self.item, self.left = (options or {"index": 0})["index"], self.attempts
        return f"{self.item} + {self.item}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        reward = sum(character.isdigit() for character in action[:4]) / 4
        success = reward > 0.5
        facts = {"success": success, "outcome": int(success), "attempts_left": self.left}
        return "again", reward, success or not self.left, False, facts

    def demonstration(self, index: int, draw: int = 0) -> str:
        return f"{index}{draw}77"

    def strata(self) -> np.ndarray:
        return np.zeros(self.num_items, dtype=np.int64)

    def questions(self) -> range:
        return range(self.num_items)


DIGITS = "test/digits-v0"
if DIGITS not in gymnasium.registry:
    gymnasium.register(DIGITS, Digits)


@pytest.fixture
def make_arm(tmp_path: Path) -> Callable[..., RLArm]:
    """An RL arm on the shipped model, fresh each time, on the toy task unless keys say else; they are as for
    ``load_config``."""

    def make(**keys: Any) -> RLArm:
        small: dict[str, Any] = {
            "task.train": DIGITS,
            "task.eval": {"id": DIGITS},
            "task.verify_iter": 1,
            "rollout.max_new_tokens": 4,
            "rl.prompts": 4,
            "rl.group": 8,
            "rl.temperature": 1.5,
            "rl.lr": 2e-3,
        }
        config: Config = load_config(overrides={**small, **keys})
        config = config.model_copy(update={"rl": resolved(config.rl)})
        language = load("tiny", device="cpu")
        head = ValueHead(language.model) if recipe(config.rl).critic else None
        optimizer = Optimizer(language.model, config.rl, head=head, head_lr=config.rl.value_lr)
        items = task_env(config.task.train, config.task.env_kwargs).num_items
        engine, compute = make_engine(language, config), Compute(language.num_parameters)
        guard = Guard(tmp_path / "skipped")
        ahead = Ahead(language, config) if config.rl.overlap else None
        return RLArm(language, None, engine, optimizer, config, 0, items, compute, guard, head, ahead)

    return make
