"""A whole run on pictures: every arm, evaluated on black and on red suits, stopped and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.mllama_case import make

from sftrl_fast import evaluate
from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import freeze, make_engine
from sftrl_fast.models.load import load, save
from sftrl_fast.models.vision import PARTS
from sftrl_fast.runtime import checkpoint
from sftrl_fast.study import run as study

SETTINGS = """
[model]
name = "{model}"
[task]
train = "sftrl/points-image-train-v1"
verify_iter = 2
options = {{ size = 56 }}
[task.eval]
id = "sftrl/points-image-id-v1"
visual_ood = "sftrl/points-image-visual-ood-v1"
[warmup]
steps = 2
batch = 4
[sft]
batch = 4
[rl]
updates = 2
prompts = 2
group = 3
kl = 0.01
[rollout]
max_new_tokens = 8
[eval]
limit = 4
[checkpoint]
every_seconds = 0.0
"""


class Died(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    language = make(1)
    folder = tmp_path_factory.mktemp("models") / "m"
    save(language.model, language.tokenizer, folder, language.vision)
    return str(folder)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_arm_runs_and_recognition_stands_beside_success(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: Callable[[Path], tuple[Any, Any]]
) -> None:
    file = tmp_path / "pictures.toml"
    file.write_text(SETTINGS.format(model=model))
    config = load_config(file=file)
    whole = study.run(config, tmp_path / "whole", "test")
    assert whole.results is not None
    assert set(whole.results["rates"]) == {"recognition"}
    assert set(whole.results["rates"]["recognition"]) == {"base", "warmup", "sft", "rl"}
    assert set(whole.results["rates"]["recognition"]["rl"]) == {"id", "visual_ood"}
    assert "Recognition" in (tmp_path / "whole" / "table.md").read_text()
    samples = tmp_path / "whole" / "samples"
    for name in ("base-id", "seed0-rl-visual_ood"):
        text = (samples / f"{name}.md").read_text()
        assert text.count("![what the model saw]") == 4, "one picture an item, though there are two turns"
        assert text.count("reward") == 8
        assert "misread" in text
        assert "in the picture" in text
        assert len(list(samples.glob(f"{name}-*.png"))) == 4
    updates = [entry for entry in entries(tmp_path / "whole") if "engine_gap" in entry]
    assert len(updates) == 2
    for entry in updates:
        assert entry["trained_rows"] == 6
        assert entry["entropy"] > 0
        assert 0 <= entry["recognition"] <= 1
        assert entry["engine_gap_max"] < 1e-3, "engine and trainer see the same picture"
    copy = load(str(tmp_path / "whole" / "models" / "seed0" / "rl"), device="cpu")
    assert copy.vision == load(model, device="cpu").vision

    save_checkpoint, saves = checkpoint.save, []

    def dying(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        saves.append(1)
        if len(saves) == 5:
            raise Died

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Died):
        study.run(config, tmp_path / "broken", "test")
    monkeypatch.undo()
    assert study.resume(tmp_path / "broken").results is not None
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_frozen_parts_stay_as_they_are(model: str, tmp_path: Path) -> None:
    file = tmp_path / "frozen.toml"
    file.write_text(SETTINGS.format(model=model))
    overrides = {"model.freeze": ("vision", "language"), "rl.kl": 0.0, "eval.limit": 1}
    config = load_config(file=file, overrides=overrides)
    assert study.run(config, tmp_path / "run", "test").results is not None
    before, after = (
        load(model, device="cpu"),
        load(str(tmp_path / "run" / "models" / "seed0" / "sft"), device="cpu"),
    )
    moved = {
        name
        for (name, old), new in zip(before.model.named_parameters(), after.model.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {"model.multi_modal_projector.weight", "model.multi_modal_projector.bias"}


def test_parts_are_the_whole_model(model: str) -> None:
    language = load(model, device="cpu")
    assert language.vision is not None
    parts = language.vision.parts(language.model)
    assert tuple(parts) == PARTS
    held = [p for modules in parts.values() for module in modules for p in module.parameters()]
    assert {id(p) for p in held} == {id(p) for p in language.model.parameters()}
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(language, PARTS)
    with pytest.raises(UserError, match="a model of text has no such parts"):
        freeze(load("tiny", device="cpu"), ("vision",))


def test_sets_of_pictures_are_answered_a_part_at_a_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pictures.toml"
    file.write_text(SETTINGS.format(model=model))
    config = load_config(file=file, overrides={"eval.limit": 7})
    language = load(model, device="cpu")
    engine = make_engine(language, config)
    found = []
    for size in (100, 3):
        monkeypatch.setattr(evaluate, "PICTURES_AT_ONCE", size)
        env_id = config.task.eval["id"]
        found.append(evaluate.evaluate_set(engine, language.chat, env_id, config, max_context=512))
    assert found[0] == found[1]
