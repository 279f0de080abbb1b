"""Self-SFT: what is shown is right, the model's own as it was, paid for, and the same after a resumption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftrl_fast.config import load_config
from sftrl_fast.core import Episode, Group, Turn, Verdict
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.runtime import checkpoint
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.study import run as study
from sftrl_fast.train.own_answers import Author, OwnAnswers, right_answers

CARDS = "sftrl/points-text-train-v1"


def episode(*turns: tuple[list[int], bool, bool], sample: int = 0) -> Episode:
    """Turns of (answer, right, stopped)."""
    made = [
        Turn([1, 2], answer, [-1.0] * len(answer), "", stopped, Verdict(0.0, 0, right, "", right=right))
        for answer, right, stopped in turns
    ]
    return Episode(0, sample, made)


def test_right_answers_are_shown_once_and_wrong_ones_not_trained() -> None:
    group = Group(
        0,
        [
            episode(([5, 6], True, True)),
            episode(([5, 7], False, True)),
            episode(([5, 6], True, True)),
            episode(([5, 8], True, False)),
            episode(([9], False, True), ([5, 6], True, True)),
        ],
    )
    rows = right_answers(group)
    assert [row.ids for row in rows] == [[1, 2, 5, 6], [1, 2, 9, 1, 2, 5, 6]]
    assert [row.prompt for row in rows] == [2, 2]
    assert rows[0].trained == [False, False, True, True]
    assert rows[1].trained == [False] * 5 + [True, True]


def own_answers(language: LanguageModel, **keys: Any) -> OwnAnswers:
    settings = {"task.verify_iter": 1, "rollout.max_new_tokens": 40, "sft.batch": 12, "sft.tries": 6, **keys}
    config = load_config(overrides=settings)
    author = Author(language, config, Compute(language.num_parameters))
    return OwnAnswers(task_env(CARDS, config.task.env_kwargs), author, config.sft, "seed0/sft")


def test_every_answer_shown_is_right_and_every_item_without_one_is_told(tiny: LanguageModel) -> None:
    own = own_answers(tiny)
    rows = own.batch(0)
    env, questions = own.env, {}
    for item in range(own.env.num_items):
        questions.setdefault(tuple(tiny.chat.prompt_ids(env.reset(options={"index": item})[0])), item)
    solved = set()
    for row in rows:
        item = questions[tuple(row.ids[: row.prompt])]
        env.reset(options={"index": item})
        assert env.step(tiny.chat.decode(row.ids[row.prompt :]))[4]["success"]
        solved.add(item)
    assert own.facts == {"unsolved": (12 - len(solved)) / 12, "own_answers": len(rows)}
    assert 0 < len(solved) < 12
    assert len({tuple(row.ids) for row in rows}) == len(rows)


def test_the_model_that_answers_is_not_the_one_that_learns_and_the_answers_are_paid_for(
    tiny: LanguageModel,
) -> None:
    first = own_answers(tiny)
    rows = first.batch(3)
    spent = first._author.compute
    assert spent.samples == 12 * 6
    assert spent.trained_tokens == 0
    prompts = 6 * 12 * 40
    assert spent.flops == 2 * tiny.num_parameters * spent.generated_tokens > 2 * tiny.num_parameters * prompts
    assert own_answers(tiny).batch(3) == rows
    assert own_answers(tiny, **{"sft.temperature": 1.5}).batch(3) != rows
    changed = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(0.9)
    other = LanguageModel(changed, tiny.tokenizer, tiny.chat)
    assert own_answers(other).batch(3) != rows


def test_each_visit_draws_anew(tiny: LanguageModel) -> None:
    own = own_answers(tiny)
    own.env.num_items = 12
    assert {tuple(row.ids) for row in own.batch(0)} != {tuple(row.ids) for row in own.batch(1)}


class Died(Exception):
    pass


def test_a_run_on_own_answers_dies_and_ends_with_the_same_numbers(
    tmp_path: Path, numbers: Callable[[Path], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        overrides={
            "task.verify_iter": 1, "warmup.steps": 1, "warmup.batch": 4, "sft.batch": 4, "sft.data": "self",
            "sft.tries": 4, "rl.updates": 2, "rl.prompts": 4, "rl.group": 8, "eval.limit": 2,
            "rollout.max_new_tokens": 40, "checkpoint.every_seconds": 0.0, "checkpoint.keep_arms": False,
        }
    )  # fmt: skip
    study.run(config, tmp_path / "whole", "test")
    real_save = checkpoint.save

    def dying_save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        real_save(path, tensors, state)
        if state["step"] == 2 and "seed0/sft" in state["compute"]:
            raise Died

    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Died):
        study.run(config, tmp_path / "broken", "test")
    monkeypatch.undo()
    study.resume(tmp_path / "broken")
    whole = numbers(tmp_path / "whole")
    assert numbers(tmp_path / "broken") == whole
    shown = [row for row in whole[0] if "own_answers" in row]
    assert len(shown) > 2
    assert 0 < sum(row["unsolved"] for row in shown) < len(shown)
