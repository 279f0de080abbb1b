"""Each row of the table on one example worked out by hand."""

from __future__ import annotations

from math import exp

import pytest
import torch

from sftrl_fast.algo.advantages import episode_advantages
from sftrl_fast.algo.recipes import RECIPES, LossTerms, Recipe, policy_loss, recipe
from sftrl_fast.algo.reductions import token_weights
from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict

# One group of two answers, of 1 and 3 tokens, that earned 5 and -1: mean 2, sample deviation sqrt(18).
LENGTHS = torch.tensor([1, 3])
OLD = torch.tensor([-1.0, -1.0, -2.0, -0.5])
# Ratios 1.5 (above the bound, advantage > 0: cut to 1.2), 1, 0.5 (advantage < 0: cut to 0.8), 2 (free).
LOGP = OLD + torch.tensor([1.5, 1.0, 0.5, 2.0]).log()
REFERENCE = LOGP + torch.tensor([0.0, 1.0, 0.0, -1.0])
KL = [0.0, exp(1) - 2, 0.0, exp(-1)]
MAX_LENGTH = 4


def run(name: str, kl_coef: float = 0.0, reference: torch.Tensor | None = None) -> LossTerms:
    row = recipe(name)
    episodes = [
        Episode(0, i, [Turn([1], [2] * n, [-1.0] * n, "", True, Verdict(reward, 0, False, ""))])
        for i, (n, reward) in enumerate(((1, 5.0), (3, -1.0)))
    ]
    (values,) = episode_advantages([Group(0, episodes)], row.advantage)
    weights = token_weights(row.reduction, LENGTHS, max_length=MAX_LENGTH)
    return policy_loss(
        row,
        LOGP.clone().requires_grad_(),
        OLD,
        reference,
        torch.tensor(values).repeat_interleave(LENGTHS),
        weights.repeat_interleave(LENGTHS),
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=kl_coef,
    )


def test_grpo_by_hand() -> None:
    a = 3 / 18**0.5
    surrogate = -(1.2 * a) / 2 + (1.0 * a + 0.8 * a + 2.0 * a) / 6
    assert run("grpo").loss.item() == pytest.approx(surrogate, rel=1e-5)
    terms = run("grpo", 0.1, REFERENCE)
    penalty = 0.1 * (KL[0] / 2 + sum(KL[1:]) / 6)
    assert terms.loss.item() == pytest.approx(surrogate + penalty, rel=1e-5)
    assert terms.kl is not None
    assert terms.kl.tolist() == pytest.approx(KL, abs=1e-5)
    assert terms.clipped.tolist() == [True, False, True, False]


def test_dr_grpo_by_hand() -> None:
    terms = run("dr_grpo", 0.1, REFERENCE)
    assert terms.loss.item() == pytest.approx(
        (-(1.2 * 3) + 3 * (1.0 + 0.8 + 2.0)) / (2 * MAX_LENGTH), rel=1e-5
    )
    assert terms.kl is None


def test_rloo_by_hand() -> None:
    terms = run("rloo")
    assert terms.loss.item() == pytest.approx((-6 * LOGP[0] + 6 * LOGP[1:].sum()).item() / 2, rel=1e-5)
    assert terms.clipped.sum() == 0


def test_every_row_of_the_table_has_a_hand_worked_test() -> None:
    assert {f"test_{name}_by_hand" for name in RECIPES} <= set(globals())


def test_a_penalty_without_a_reference_raises_and_coefficient_zero_needs_none() -> None:
    with pytest.raises(UserError, match="ref_logp"):
        run("grpo", 0.1)
    assert run("grpo", 0.0).kl is None


def test_unknown_names_raise_and_list_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"algorithm is 'grppo'; needed: one of grpo, "):
        recipe("grppo")
    good = {"advantage": "group_mean", "surrogate": "clip", "reduction": "constant", "kl": "none"}
    Recipe(**good)
    for key in good:
        with pytest.raises(UserError, match=f"{key} is 'nothing'"):
            Recipe(**(good | {key: "nothing"}))
