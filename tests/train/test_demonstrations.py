"""Demonstrations beside samples: verified like them, booked, and on their own the gradient of SFT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sftrl_fast.evaluate import task_env
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import SamplingParams
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.demonstrations import Reciter
from sftrl_fast.train.pack import dialogue_row
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.sft import cross_entropy_step, played

Make = Callable[..., RLArm]
CARDS = "sftrl/points-text-train-v1"
SMALL = {
    "task.train": CARDS,
    "rollout.max_new_tokens": 40,
    "rl.prompts": 3,
    "rl.group": 4,
    "rl.temperature": 1.0,
}


@pytest.mark.parametrize("env_id", [CARDS, "sftrl/navigation-text-absolute-validation-v1"])
def test_recited_answers_are_the_demonstrations_and_right(env_id: str, tiny: LanguageModel) -> None:
    env = task_env(env_id, {})
    groups = run_episodes(
        Reciter(env, tiny.chat), tiny.chat, env_id, [3, 1], group_size=2, params=SamplingParams(8), seed=0, step=0,
        env_kwargs={},
    )  # fmt: skip
    for group in groups:
        for episode in group.episodes:
            assert episode.success
            known = env.demonstration(group.index, episode.sample)
            answers = [known] if isinstance(known, str) else list(known)
            assert [turn.text for turn in episode.turns] == answers
            assert all(turn.verdict.right and set(turn.logprobs) == {0.0} for turn in episode.turns)


def gradient(arm: RLArm) -> dict[str, torch.Tensor]:
    """Of the update's first optimizer step, which is not taken."""
    kept: dict[str, torch.Tensor] = {}

    def keep(done: float) -> tuple[float, float]:
        kept.update({name: p.grad.clone() for name, p in arm.optimizer.parameters.items()})
        arm.optimizer.discard()
        return done, done

    arm.optimizer.step = keep  # type: ignore[method-assign]
    arm.update(0, 0.0)
    return kept


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, each in one.items():
        torch.testing.assert_close(each, other[name], rtol=1e-3, atol=1e-6)


def test_chord_with_nothing_but_demonstrations_is_sft_and_with_none_grpo(make_arm: Make) -> None:
    arm = make_arm(**SMALL, **{"rl.recipe": "chord", "rl.mu": 1.0})
    shown = [item for item, _ in draw_items(arm.num_items, 3, "seed0/rl", 0)]
    found = gradient(arm)
    language = arm.language
    language.model.zero_grad()
    env = task_env(CARDS, {})
    cross_entropy_step(language.model, [dialogue_row(language.chat, played(env, i, 0)) for i in shown], 1000)
    assert_same(found, {name: p.grad.clone() for name, p in language.model.named_parameters()})
    nothing = make_arm(**SMALL, **{"rl.recipe": "chord", "rl.mu": 0.0, "rl.mu_end": 0.0})
    assert_same(gradient(nothing), gradient(make_arm(**SMALL, **{"rl.recipe": "grpo"})))


@pytest.mark.parametrize(
    ("name", "old"), [("luffy", "engine"), ("luffy", "trainer"), ("chord_phi", "engine")]
)
def test_demonstrations_are_booked_and_measured_apart(name: str, old: str, make_arm: Make) -> None:
    plain, hybrid = (
        make_arm(**SMALL, **{"rl.recipe": recipe, "rl.old_logprobs": old}, **more)
        for recipe, more in (("dr_grpo", {}), (name, {"rl.demonstrations": 2}))
    )
    one, other = plain.update(0, 0.0), hybrid.update(0, 0.0)
    for key in ("reward", "success", "attempts"):
        assert one[key] == other[key]
    assert "demonstration_nll" not in one
    assert 0 < other["demonstration_nll"] < 10
    # The policy's own tokens alone: an expert's have ratios far from 1 and no engine that drew them.
    assert other["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert other["engine_gap_max"] < 1e-3
    assert hybrid.compute.samples == plain.compute.samples + 3 * 2
    assert hybrid.compute.generated_tokens == plain.compute.generated_tokens
    env, chat = task_env(CARDS, {}), hybrid.language.chat
    items = [item for item, _ in draw_items(hybrid.num_items, 3, "seed0/rl", 0)]
    shown = [len(dialogue_row(chat, played(env, item, draw)).ids) for item in items for draw in (0, 1)]
    assert hybrid.compute.trained_tokens == plain.compute.trained_tokens + sum(shown)


def test_a_group_that_fails_learns_from_what_it_is_shown(make_arm: Make) -> None:
    """At a temperature of almost 0 the samples of an item are equal; only a demonstration tells good from bad."""
    cold = {**SMALL, "rl.temperature": 0.01, "rl.prompts": 8}
    assert make_arm(**cold, **{"rl.recipe": "dr_grpo"}).update(0, 0.0)["grad_norm"] == 0
    assert make_arm(**cold, **{"rl.recipe": "luffy"}).update(0, 0.0)["grad_norm"] > 0
