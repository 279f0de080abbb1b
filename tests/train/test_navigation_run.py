"""A small run of ``train`` on routes: every stage, every set, on a model that was made for routes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sftrl_fast.config import PretrainConfig, load_config, resolve
from sftrl_fast.models.load import load
from sftrl_fast.study import run as study
from sftrl_fast.tasks import corpora
from sftrl_fast.train.pretrain import pretrain


@pytest.fixture(scope="module")
def tiny_nav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps: a tokenizer of the wording and the right context, no skill."""
    out = tmp_path_factory.mktemp("models") / "tiny-nav"
    row = replace(corpora.CORPORA["navigation"], tokenizer_dialogues=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(corpora.CORPORA, "navigation", row)
        pretrain(resolve(PretrainConfig, [{"corpus": "navigation", "steps": 2, "batch": 2}], {}), out)
    return out


def test_a_model_made_for_routes_holds_a_whole_walk(tiny_nav: Path) -> None:
    language = load(str(tiny_nav), device="cpu")
    assert language.max_context == 2048
    assert len(language.chat.answer_ids("turn_direction(slightly left)")) < 8


def test_a_run_on_routes_goes_through_every_stage(tiny_nav: Path, tmp_path: Path) -> None:
    config = load_config(
        preset="nav-text",
        overrides={
            "model.name": str(tiny_nav), "task.verify_iter": 1, "warmup.steps": 1, "warmup.batch": 2, "sft.batch": 2,
            "rl.updates": 1, "rl.prompts": 1, "rl.group": 2, "eval.limit": 1, "rollout.max_new_tokens": 3,
            "rollout.max_sequences": 4, "checkpoint.keep_arms": False,
        },
    )  # fmt: skip
    results = study.run(config, tmp_path / "run", "test").results
    assert results is not None
    for beside in (results["rates"].pop("first_try"), results["rates"].pop("accuracy")):
        assert set(beside) == {"base", "warmup", "rl", "sft"}
        assert all(set(cells) == {"id", "rule_ood", "visual_ood"} for cells in beside.values())
    assert not results["rates"]
    page = (tmp_path / "run" / "table.md").read_text()
    assert "**First tries: " in page
    assert "**Steps: " in page
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {(row["stage"], row["set"]): row for row in rows if "set" in row}
    assert {name for _, name in rates} == {"id", "rule_ood", "visual_ood"}
    assert {stage for stage, _ in rates} == {"base", "warmup", "rl", "sft"}
    for row in rates.values():
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["first_try"] <= 1
        # A route takes an answer a point, right or wrong.
        assert row["attempts"] >= 4
