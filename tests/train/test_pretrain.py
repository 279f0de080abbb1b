"""How many dialogues a step of pre-training takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftrl_fast.config import PretrainConfig, resolve
from sftrl_fast.core import Row
from sftrl_fast.tasks import corpora
from sftrl_fast.train import pretrain as module


@pytest.mark.parametrize(
    "settings", [{"batch": 3}, {"batch": 3, "step_tokens": 400}], ids=["by dialogues", "by tokens"]
)
def test_a_step_takes_a_batch_or_as_many_dialogues_as_reach_its_tokens(
    settings: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[Row]] = []
    learn = module.cross_entropy_step

    def noted(model: object, rows: list[Row], max_tokens: int) -> object:
        steps.append(rows)
        return learn(model, rows, max_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "cross_entropy_step", noted)
    monkeypatch.setitem(
        corpora.CORPORA, "points", replace(corpora.CORPORA["points"], tokenizer_dialogues=200)
    )
    module.pretrain(resolve(PretrainConfig, [{"steps": 2, "threads": 1, **settings}], {}), tmp_path / "made")
    assert len(steps) == 2
    for rows in steps:
        lengths = [len(row.ids) for row in rows]
        if "step_tokens" in settings:
            assert sum(lengths[:-1]) < 400 <= sum(lengths)
        else:
            assert len(rows) == 3
