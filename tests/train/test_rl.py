"""One update, looked into: what its columns mean, what a critic is told, which groups are sampled again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sftrl_fast.algo.recipes import recipe
from sftrl_fast.core import Episode, Group, Row, Turn, Verdict
from sftrl_fast.models.value_head import ValueHead
from sftrl_fast.train.collect import collect
from sftrl_fast.train.pack import micro_batches
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.score import outputs, score

Make = Callable[..., RLArm]


def group(*rewards: float) -> Group:
    turns = [Turn([5, 6], [7, 8], [-0.1, -0.2], "", True, Verdict(r, 0, False, "")) for r in rewards]
    return Group(0, [Episode(0, i, [turn]) for i, turn in enumerate(turns)])


def rows() -> list[Row]:
    """Two dialogues of two answers each with one prompt, and one of one answer."""
    two = [False, False, True, True, False, True]
    return [
        Row([5, 6, 7, 8, 9, 3], two, 2, [2, 1], [-1.0] * 3, [-1.0] * 3, [0.5, -0.5], [1.0, 2.0]),
        Row([5, 6, 9, 8, 9, 4], two, 2, [2, 1], [-2.0] * 3, [-2.0] * 3, [-0.5, 1.0], [0.0, 1.0]),
        Row([9, 2, 2], [False, False, True], 2, [1], [-1.0], [-1.0], [1.0], [3.0]),
    ]


def test_a_value_knows_the_question_and_nothing_of_the_answer(make_arm: Make) -> None:
    arm = make_arm()
    model = arm.language.model
    head = ValueHead(model)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.linear.weight)
    given = rows()
    values = score(model, head, given, 1000).values
    other = [Row([*row.ids[:-1], 11], row.trained, row.prompt, row.turns) for row in given]
    assert [value[-1] for value in score(model, head, other, 1000).values] == pytest.approx(
        [value[-1] for value in values], abs=1e-5
    )
    # By hand: the decoder's hidden state just before each answer.
    for row, found in zip(given, values, strict=True):
        with torch.no_grad():
            hidden = model.get_decoder()(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
            starts = [i - 1 for i, on in enumerate(row.trained) if on and not row.trained[i - 1]]
            assert head(hidden[starts]).tolist() == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo"])
def test_the_gradient_does_not_depend_on_the_cut(name: str, make_arm: Make) -> None:
    found = []
    for max_tokens in (1, 1000):
        arm = make_arm(**{"rl.recipe": name, "compute.micro_batch_tokens": max_tokens})
        kept: dict[str, torch.Tensor] = {}

        def keep(done: float, kept: dict[str, torch.Tensor] = kept, arm: RLArm = arm) -> tuple[float, float]:
            kept |= {name: p.grad.clone() for name, p in arm.optimizer.parameters.items()}
            return done, done

        arm.language.model.double()
        arm.optimizer.step = keep  # type: ignore[method-assign]
        assert (arm.guard.attempt("x", rows(), arm.optimizer, lambda arm=arm: step(arm)) or {})["loss"] != 0
        found.append(kept)
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)


def step(arm: RLArm) -> dict[str, float]:
    return arm._optimize(rows(), recipe(arm.config.rl), 0.0)


def test_the_trainers_own_log_probabilities_are_the_engines(make_arm: Make) -> None:
    for keys in ({"rl.old_logprobs": "engine"}, {"rl.old_logprobs": "trainer", "rl.tis": 2.0}):
        metrics = make_arm(**keys).update(0, 0.0)
        assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert 0 < metrics["engine_gap_max"] < 1e-3


def test_truncation_bounds_what_a_token_of_a_wrong_engine_weighs(make_arm: Make) -> None:
    """An engine that reports half of each probability: tokens weigh 2, or with the bound 1.5, or 1 without."""
    losses = {}
    for tis in (0.0, 1.5, 3.0):
        arm = make_arm(**{"rl.recipe": "dr_grpo", "rl.old_logprobs": "trainer", "rl.tis": tis})
        real = arm.engine.step

        def halved(real: Callable[[], list[Any]] = real) -> list[Any]:
            answered = real()
            for _, completion in answered:
                completion.sampled_logprobs[:] = [p - math.log(2) for p in completion.sampled_logprobs]
            return answered

        arm.engine.step = halved  # type: ignore[method-assign]
        losses[tis] = arm.update(0, 0.0)["grad_norm"]
    assert losses[1.5] == pytest.approx(1.5 * losses[0.0], rel=1e-3)
    assert losses[3.0] == pytest.approx(2 * losses[0.0], rel=1e-3)


def test_an_update_in_which_nothing_is_trained_measures_nothing(make_arm: Make) -> None:
    arm = make_arm(**{"rl.prompts": 1, "rl.group": 2, "rl.temperature": 0.01})
    before = copy.deepcopy(arm.language.model.state_dict())
    metrics = arm.update(0, 0.0)
    assert metrics["mixed_groups"] == metrics["trained_rows"] == metrics["grad_norm"] == 0
    assert all(
        math.isnan(metrics[key]) for key in ("engine_gap", "engine_gap_max", "ratio_mean", "ratio_max")
    )
    assert all(torch.equal(before[name], now) for name, now in arm.language.model.state_dict().items())


def test_a_minibatch_without_trained_rows_does_not_dilute_the_others(make_arm: Make) -> None:
    """32 minibatches of one episode, most of advantage 0: the ratio stays near 1 and not near the share of the rest."""
    arm = make_arm(**{"rl.minibatches": 32, "rl.lr": 1e-9})
    metrics = arm.update(0, 0.0)
    assert 0 < metrics["trained_rows"] < 1
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["engine_gap"] > 0


def test_the_entropy_bonus_trains_rows_that_have_no_advantage(make_arm: Make) -> None:
    keys = {"rl.prompts": 1, "rl.group": 2, "rl.temperature": 0.01}
    assert make_arm(**keys).update(0, 0.0)["grad_norm"] == 0
    assert make_arm(**keys, **{"rl.entropy": 0.1}).update(0, 0.0)["trained_rows"] == 2


def test_a_critic_comes_to_expect_what_is_earned(make_arm: Make) -> None:
    arm = make_arm(**{"rl.recipe": "ppo", "rl.lr": 1e-9, "rl.value_lr": 0.02})
    losses = [arm.update(step, 0.0)["value_loss"] for step in range(4)]
    assert losses[-1] < losses[0]
    assert arm.head is not None
    assert float(arm.head.linear.weight.detach().abs().sum()) > 0


def test_tied_groups_are_replaced_while_rounds_are_left() -> None:
    answers = {
        0: [group(1, 1), group(0, 1), group(2, 2), group(3, 3)],
        1: [group(5, 5), group(1, 2), group(4, 4)],
        2: [group(7, 8), group(9, 9)],
    }
    asked: list[tuple[int, int]] = []

    def sample(items: Sequence[int], again: int) -> list[Group]:
        asked.append((again, len(items)))
        return answers[again]

    def draw(again: int) -> list[int]:
        return [10 * again + i for i in range(4)]

    for rounds, mixed, dropped in ((0, 1, 0), (1, 2, 3), (2, 3, 5)):
        asked.clear()
        groups, gone = collect(draw, sample, rounds)
        assert len(groups) == 4
        assert sum(len({e.reward for e in g.episodes}) > 1 for g in groups) == mixed
        assert gone == dropped
        assert asked == [(0, 4), (1, 3), (2, 2)][: rounds + 1]
    answers[0] = [group(0, 1)] * 4
    asked.clear()
    assert collect(draw, sample, 3)[1] == 0
    assert asked == [(0, 4)]


def test_dynamic_sampling_trains_more_groups_and_is_booked(make_arm: Make) -> None:
    plain, dapo = (make_arm(**{"rl.recipe": "dapo", "rl.resample": n, "rl.temperature": 1.0}) for n in (0, 3))
    one, other = plain.update(0, 0.0), dapo.update(0, 0.0)
    assert other["mixed_groups"] > one["mixed_groups"]
    assert other["dropped_groups"] > 0
    assert dapo.compute.samples == plain.compute.samples + 8 * other["dropped_groups"]


def test_outputs_come_in_the_order_of_the_batch(make_arm: Make) -> None:
    model = make_arm().language.model
    given = rows()
    whole = score(model, None, given, 1000).logprobs
    for batch in micro_batches(given, 1, model.device):
        logp, _, values = outputs(model, None, batch, [given[i] for i in batch.rows], 1.0)
        assert values is None
        expected = [p for i in batch.rows for p in whole[i]]
        assert logp.tolist() == pytest.approx(expected, abs=1e-5)


def test_parts_of_the_reward_are_weighed_and_logged(make_arm: Make) -> None:
    cards = {
        "task.train": "sftrl/points-text-train-v1", "rollout.max_new_tokens": 40, "task.verify_iter": 2,
        "rl.prompts": 2, "rl.group": 4, "rl.temperature": 1.0,
    }  # fmt: skip
    plain = make_arm(**cards).update(0, 0.0)
    weights = {"outcome": 0.5, "formed": 2.0, "cards": 0.0}
    parts = make_arm(**cards, **{f"rl.reward_parts.{name}": weight for name, weight in weights.items()})
    found = parts.update(0, 0.0)
    assert found["reward/outcome"] == pytest.approx(plain["reward"])
    assert found["reward"] == pytest.approx(0.5 * found["reward/outcome"] + 2 * found["reward/formed"])
    # Parts are added up over an episode's answers as rewards are.
    assert 0 < found["reward/formed"] <= found["attempts"]
