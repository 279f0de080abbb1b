"""A whole run on pictures: every arm, evaluated on black and on red suits, stopped and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models.mllama_case import make

from sftrl_fast.config import load_config
from sftrl_fast.models.load import load, save
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
    assert set(whole.results["recognition"]) == {"base", "warmup", "sft", "rl"}
    assert set(whole.results["recognition"]["rl"]) == {"id", "visual_ood"}
    assert "Recognition" in (tmp_path / "whole" / "table.md").read_text()
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
