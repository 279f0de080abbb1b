"""``task.train_options`` reach what is trained on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sftrl_fast.algo.recipes import recipe
from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import evaluate_set
from sftrl_fast.train.demonstrations import demonstrated
from sftrl_fast.train.rl import RLArm

CARDS = "sftrl/points-text-train-v1"


def test_training_is_asked_in_other_words_than_evaluation(make_arm: Callable[..., RLArm]) -> None:
    arm = make_arm(
        **{
            "task.train": CARDS, "task.options": {"reasoning": True}, "task.train_options": {"phrasing": "held-out"},
            "rl.recipe": "luffy", "rl.group": 2, "rl.prompts": 1, "eval.limit": 1,
        }
    )  # fmt: skip
    chat, config = arm.language.chat, arm.config
    groups, _ = demonstrated(arm._rollout(0).groups, recipe(config.rl), config, arm.language)
    asked = [chat.decode(episode.turns[0].prompt_ids) for episode in groups[0].episodes]
    assert len(asked) == 3
    assert all("[Goal]" in question and "steps" in question for question in asked)
    assert '"steps"' in groups[0].episodes[-1].turns[0].text
    evaluation = evaluate_set(arm.engine, chat, CARDS, config, max_context=arm.language.max_context)
    question = chat.decode(evaluation.samples[0].turns[0].prompt_ids)
    assert "[Task] Four cards are dealt." in question
    assert "steps" in question


def test_options_of_training_come_over_the_common_ones() -> None:
    task = load_config(
        overrides={"task.options": {"target": 24, "rewards": "exact"}, "task.train_options": {"target": 12}}
    ).task
    assert task.env_kwargs == {"verify_iter": 5, "target": 24, "rewards": "exact"}
    assert task.train_kwargs == {"verify_iter": 5, "target": 12, "rewards": "exact"}
    with pytest.raises(UserError, match="must not hold verify_iter"):
        load_config(overrides={"task.train_options": {"verify_iter": 1}})
