"""The paper's settings: what they come to, and that they run, on the shipped models and cut down in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from sftrl_fast.algo.recipes import resolved
from sftrl_fast.config import load_config, preset_for, presets
from sftrl_fast.study import run as study

PAPER = [name for name in presets() if name.startswith("paper-")]
UPDATES = {"paper-gp-text": 20, "paper-gp-image": 20, "paper-nav-text": 15, "paper-nav-image": 15}
CUT: dict[str, Any] = {
    "model.dtype": "float32",
    "warmup.steps": 1,
    "warmup.batch": 2,
    "sft.batch": 2,
    "rl.updates": 1,
    "rl.prompts": 4,
    "eval.limit": 4,
    "rollout.max_new_tokens": 8,
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name: str) -> None:
    config = load_config(preset=name)
    rl = resolved(config.rl)
    assert (rl.recipe, rl.clip_low, rl.clip_high, rl.epochs, rl.value) == ("ppo", 0.1, 0.1, 4, 0.5)
    assert (rl.gamma, rl.lam, rl.kl, rl.temperature, rl.max_grad_norm, rl.eps) == (
        0.9,
        0.95,
        0,
        0.2,
        0.01,
        1e-7,
    )
    assert rl.updates == UPDATES[name]
    assert rl.updates * (rl.epochs or 0) * rl.minibatches == 8 * rl.updates
    assert config.sft.batch == config.warmup.batch == 128
    assert config.task.verify_iter == (5 if "gp" in name else 2)


@pytest.mark.parametrize("name", PAPER)
def test_environments_can_be_made(name: str) -> None:
    task = load_config(preset=name).task
    for env_id in (task.train, *task.eval.values()):
        env = gymnasium.make(env_id, **task.env_kwargs)
        assert env.unwrapped.num_items > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "model", "more"),
    [("paper-gp-text", "tiny", {}), ("paper-gp-image", "tiny-image", {"task.options.size": 56})],
)
def test_card_presets_run(name: str, model: str, more: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(preset=name, overrides={**CUT, **more, "model.name": model})
    outcome = study.run(config, tmp_path / "run", name)
    assert outcome.results is not None


def test_a_model_of_several_presets_takes_none_unasked() -> None:
    assert preset_for(load_config(preset="paper-gp-text").model.name) is None
    assert preset_for("tiny") == "tiny"
