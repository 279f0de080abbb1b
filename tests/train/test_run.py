"""A run that dies goes on as if it had not: on a few steps of the shipped model, in this process."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftrl_fast.config import Config, load_config
from sftrl_fast.core import UserError
from sftrl_fast.runtime import checkpoint
from sftrl_fast.study import run as study
from sftrl_fast.train import run as train
from sftrl_fast.train.state import plan

SMALL: dict[str, Any] = {
    "seeds": (3, 5),
    "task.verify_iter": 2,
    "warmup.steps": 2,
    "warmup.batch": 8,
    "sft.batch": 4,
    "sft.schedule": "cosine",
    "rl.updates": 3,
    "rl.prompts": 3,
    "rl.group": 4,
    "rl.minibatches": 2,
    "rl.kl": 0.01,
    "rl.temperature": 0.7,
    "eval.limit": 6,
    "eval.every": 2,
    "rollout.max_new_tokens": 44,
    "compute.micro_batch_tokens": 1024,
    "checkpoint.every_seconds": 0.0,
}


def _config(**changes: Any) -> Config:
    return load_config(overrides={**SMALL, **changes})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert study.run(_config(), folder, "test").results is not None
    return folder


Numbers = Callable[[Path], tuple[Any, Any]]


class Died(Exception):
    pass


def test_a_run_that_dies_at_any_checkpoint_ends_with_the_same_numbers(
    unbroken: Path, tmp_path: Path, numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    real_save = checkpoint.save
    saves = 0

    def dying_save(*args: Any) -> None:
        nonlocal saves
        real_save(*args)
        saves += 1
        if saves % 7 == 0:
            # What a process writes between its last checkpoint and its end must be cut off again.
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"stage": "rl", "step": 99, "loss":')
            raise Died

    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Died):
        study.run(_config(), folder, "test")
    deaths = 1
    while True:
        try:
            study.resume(folder)
            break
        except Died:
            deaths += 1
    assert deaths >= 3
    assert numbers(folder) == numbers(unbroken)


PPO: dict[str, Any] = {
    "seeds": (3,), "rl.recipe": "ppo", "rl.kl": 0.0, "rl.value_lr": 0.01, "rl.updates": 2, "eval.every": 0,
    "sft.loss": "psft", "sft.passes": 2, "checkpoint.keep_arms": False, "eval.limit": 2,
    "compute.match": "samples",
}  # fmt: skip


def test_a_critic_dies_and_lives_again_with_its_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.run(_config(**PPO), tmp_path / "whole", "test")
    real_save = checkpoint.save

    def dying_save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        real_save(path, tensors, state)
        if "value_head/linear.weight" in tensors and state["step"] == 1:
            assert float(tensors["value_head/linear.weight"].abs().sum()) > 0
            assert "optimizer/value_head.linear.weight/exp_avg" in tensors
            raise Died

    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Died):
        train.run(_config(**PPO), tmp_path / "broken", "test")
    monkeypatch.undo()
    broken = train.resume(tmp_path / "broken")
    assert broken.state.evaluations == whole.state.evaluations
    losses = [
        [row["loss"] for line in text.splitlines() if "value_loss" in (row := json.loads(line))]
        for text in ((done.folder.path / "metrics.jsonl").read_text() for done in (whole, broken))
    ]
    assert len(losses[0]) == PPO["rl.updates"]
    assert losses[0] == losses[1]
    resolved = (tmp_path / "whole" / "config.toml").read_text()
    assert "clip_high = 0.1" in resolved
    assert "epochs = 4" in resolved


SMALLER: dict[str, Any] = {
    "seeds": (3,), "model.dtype": "bfloat16", "rl.kl": 0.01, "rl.updates": 2, "rl.lr": 1e-3, "eval.every": 0,
    "eval.limit": 2, "compute.match": "samples",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"lora.rank": 4}, r"model/.*\.lora_[AB]\.default\.weight"),
        ({f"{arm}.master_weights": True for arm in ("warmup", "sft", "rl")}, r"optimizer/.*/master"),
    ],
    ids=["lora", "master weights"],
)
def test_what_makes_training_smaller_dies_and_lives_again(
    changes: dict[str, Any], kept: str, tmp_path: Path, numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(**SMALLER, **changes)
    study.run(config, tmp_path / "whole", "test")
    real_save = checkpoint.save

    def dying_save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        real_save(path, tensors, state)
        if (
            any("optimizer/" in name for name in tensors)
            and state["compute"].get("seed3/rl")
            and state["step"] == 1
        ):
            assert any(re.fullmatch(kept, name) for name in tensors)
            if "lora.rank" in changes:
                weights = {name for name in tensors if name.startswith(("model/", "warmup/"))}
                assert all(".lora_" in name for name in weights), "what is frozen is not written"
            raise Died

    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Died):
        study.run(config, tmp_path / "broken", "test")
    monkeypatch.undo()
    study.resume(tmp_path / "broken")
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_a_run_that_dies_before_its_first_checkpoint_starts_again(
    unbroken: Path, tmp_path: Path, numbers: Numbers
) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "figures").mkdir()
    (folder / "config.toml").write_text((unbroken / "config.toml").read_text())
    study.resume(folder)
    assert numbers(folder) == numbers(unbroken)


def test_the_run_folder_holds_what_is_promised(unbroken: Path) -> None:
    results = json.loads((unbroken / "results.json").read_text())
    assert list(results["arms"]) == ["base", "warmup", "sft", "rl"]
    assert list(results["seeds"]) == ["3", "5"]
    assert set(results["arms"]["rl"]["rule_ood"]) == {"successes", "n", "rate", "low", "high"}
    for seed in (3, 5):
        for arm in ("warmup", "sft", "rl"):
            assert (unbroken / "models" / f"seed{seed}" / arm / "model.safetensors").is_file()
    assert (unbroken / "figures" / "rates.png").is_file()
    assert (unbroken / "figures" / "training.png").is_file()
    assert any((unbroken / "tensorboard").rglob("events*"))


def test_arms_are_matched_in_compute_and_the_sft_arm_is_never_given_less(unbroken: Path) -> None:
    compute = json.loads((unbroken / "results.json").read_text())["compute"]
    assert compute["sft"]["flops"] >= compute["rl"]["flops"]
    one_step = 6 * 4 * 60 * 1_200_000
    assert compute["sft"]["flops"] - compute["rl"]["flops"] < one_step


def test_rl_trains_on_the_engine_s_own_log_probabilities(unbroken: Path) -> None:
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["engine_gap"] for row in rows if "engine_gap" in row]
    assert len(gaps) == 2 * SMALL["rl.updates"]
    assert max(gaps) < 1e-5
    ids = {row["set"]: row["n"] for row in rows if "set" in row}
    assert ids == {"id_seen": 6, "id": 6, "rule_ood": 6}


def test_a_run_whose_settings_were_changed_is_not_resumed(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(unbroken, folder)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("updates = 3", "updates = 4"))
    with pytest.raises(UserError, match=r"config\.toml is not the one"):
        study.resume(folder)


def test_a_used_folder_is_refused_and_left_alone(unbroken: Path) -> None:
    before = (unbroken / "results.json").read_bytes()
    with pytest.raises(UserError, match="is not empty"):
        study.run(_config(), unbroken, "test")
    assert (unbroken / "results.json").read_bytes() == before


def test_what_would_fail_late_fails_first(tmp_path: Path) -> None:
    for changes, words in (
        ({"rollout.max_new_tokens": 5000}, "rollout.max_new_tokens=5000"),
        ({"task.train": "sftrl/no-such-v1"}, "no-such"),
        ({"task.options": {"colour": "red"}}, "colour"),
        ({"rl.recipe": "grpoo"}, "grpoo"),
        ({"rl.recipe": "grpoo", "rl.kl": 0.0}, "grpoo"),
        ({"rl.recipe": "rloo"}, "has no KL term"),
        ({"rl.recipe": "ppo", "rl.kl": 0.0, "rl.clip_low": 0.1, "rl.tis": 2.0}, "old_logprobs"),
        ({"sft.loss": "psft"}, "sft.passes=1"),
        (
            {"rl.reward_parts.neat": 1.0},
            "rl.reward_parts.neat: the task judges outcome, right, cards, formed",
        ),
        ({"rl.vision_lr": 0.1}, "rl.vision_lr=0.1: a model of text"),
        ({"lora.rank": 2, "lora.targets": ["wq"]}, "lora.targets"),
        ({"task.eval.id": "CartPole-v1"}, "CartPole-v1"),
        ({"task.eval.id": "nomodule:Env-v0"}, "nomodule"),
        ({"model.name": "/no/such/model"}, "/no/such/model"),
    ):
        with pytest.raises(UserError, match=words):
            study.run(_config(**changes), tmp_path / "out", "test")
        assert not (tmp_path / "out").exists()


def test_the_plan_evaluates_every_arm_of_every_seed_on_every_set() -> None:
    stages = plan(_config())
    assert len({(s.kind, s.name, s.set) for s in stages}) == len(stages)
    assert sum(s.kind == "eval" for s in stages) == 3 * (1 + 2 * 3)
    assert [s.arm for s in stages if s.kind == "train"] == ["warmup", "rl", "sft"] * 2
