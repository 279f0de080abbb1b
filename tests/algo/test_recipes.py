"""Each row of the table on one example worked out by hand."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch

from sftrl_fast.algo.advantages import ADVANTAGES, Experience, experience
from sftrl_fast.algo.demonstrations import MIXINGS, mixed_weights, share
from sftrl_fast.algo.recipes import (
    OWN,
    RECIPES,
    LossTerms,
    Recipe,
    policy_loss,
    recipe,
    resolved,
    truncated_importance,
    value_loss,
)
from sftrl_fast.algo.reductions import token_weights
from sftrl_fast.algo.rewards import weighed
from sftrl_fast.algo.surrogates import PolicyTokens
from sftrl_fast.config import RLConfig
from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict

# One group of two answers, of 1 and 3 tokens, that earned 5 and -1: mean 2, sample deviation sqrt(18).
LENGTHS = torch.tensor([1, 3])
OLD = torch.tensor([-1.0, -1.0, -2.0, -0.5])
# Ratios 1.5, 1, 0.5, 2: with bounds of 0.2 and the advantages' signs +, -, -, -: cut to 1.2, free, cut to 0.8, free.
RATIO = [1.5, 1.0, 0.5, 2.0]
LOGP = OLD + torch.tensor(RATIO).log()
REFERENCE = LOGP + torch.tensor([0.0, 1.0, 0.0, -1.0])
K3 = [0.0, exp(1) - 2, 0.0, exp(-1)]
MAX_LENGTH = 4
ROW = torch.arange(2)


def run(name: str, reference: torch.Tensor | None = None, **keys: Any) -> LossTerms:
    settings = resolved(RLConfig(recipe=name, **keys))
    row = recipe(settings)
    verdicts = [Verdict(reward, 0, False, "", parts={"short": reward == -1}) for reward in (5.0, -1.0)]
    episodes = [
        Episode(0, i, [Turn([1], [2] * n, [-1.0] * n, "", True, verdict)])
        for i, (n, verdict) in enumerate(zip((1, 3), verdicts, strict=True))
    ]
    group = weighed([Group(0, episodes)], settings.reward_parts)
    # With values 1 and 1 and one turn each, the estimates are 4 and -2: their mean is 1, their deviation sqrt(18).
    values = torch.ones(2) if row.critic else None
    known = experience(
        group, values=values, gamma=settings.gamma or 1, lam=settings.lam or 1, weights=settings.reward_parts
    )
    advantage = ADVANTAGES[row.advantage](known).advantage
    weights = token_weights(row.reduction, LENGTHS, ROW, max_length=MAX_LENGTH)
    member = ROW.repeat_interleave(LENGTHS)
    tokens = PolicyTokens(LOGP.clone().requires_grad_(), OLD, advantage[member], member, member)
    return policy_loss(
        row, tokens, weights[member], settings, ref_logp=reference, entropy=torch.tensor([1.0, 2.0, 3.0, 4.0])
    )


A = 3 / 18**0.5
"""Both answers' advantage, but for its sign, where it is divided by the deviation."""


def test_ppo_by_hand() -> None:
    # Ratios of whole answers: 1.5, clipped to 1.1, and 1 * 0.5 * 2 = 1; the mean over two turns.
    terms = run("ppo")
    assert terms.loss.item() == pytest.approx((-1.1 * A + 1.0 * A) / 2, rel=1e-5)
    assert terms.clipped.tolist() == [True, False, False, False]


def test_grpo_by_hand() -> None:
    surrogate = -(1.2 * A) / 2 + (1.0 * A + 0.8 * A + 2.0 * A) / 6
    assert run("grpo").loss.item() == pytest.approx(surrogate, rel=1e-5)
    terms = run("grpo", REFERENCE, kl=0.1)
    penalty = 0.1 * (K3[0] / 2 + sum(K3[1:]) / 6)
    assert terms.loss.item() == pytest.approx(surrogate + penalty, rel=1e-5)
    assert terms.kl is not None
    assert terms.kl.tolist() == pytest.approx(K3, abs=1e-5)
    assert terms.clipped.tolist() == [True, False, True, False]


def test_dr_grpo_by_hand() -> None:
    terms = run("dr_grpo")
    by_hand = (-(1.2 * 3) + 3 * (1.0 + 0.8 + 2.0)) / (2 * MAX_LENGTH)
    assert terms.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert terms.kl is None


def test_dapo_by_hand() -> None:
    # Its own upper bound is 1.28; every one of the four tokens counts a quarter.
    by_hand = A * (-1.28 + 1.0 + 0.8 + 2.0) / 4
    assert run("dapo").loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_gdpo_by_hand() -> None:
    # The outcome compares as A, -A; the part that is 0, 1 as -A, A, and weighs three times: -2 A, 2 A, of deviation 2.
    # So the advantages are -A, A: the first's ratio 1.5 stands, of the others 2 is cut to 1.2.
    terms = run("gdpo", reward_parts={"outcome": 1.0, "short": 3.0})
    assert terms.loss.item() == pytest.approx(1.5 * A / 2 - (1.0 + 0.5 + 1.2) * A / 6, rel=1e-5)


def test_gspo_by_hand() -> None:
    # Geometric means: 1.5, clipped to 1.0004, and (1 * 0.5 * 2)^(1/3) = 1.
    terms = run("gspo")
    assert terms.loss.item() == pytest.approx(A * (-1.0004 + 1.0) / 2, rel=1e-3)
    assert terms.ratio.tolist() == pytest.approx([1.5, 1.0, 1.0, 1.0])


def test_rloo_by_hand() -> None:
    terms = run("rloo")
    assert terms.loss.item() == pytest.approx((-6 * LOGP[0] + 6 * LOGP[1:].sum()).item() / 2, rel=1e-5)
    assert terms.clipped.sum() == 0


def test_reinforce_pp_by_hand() -> None:
    by_hand = A * (-1.2 + 1.0 + 0.8 + 2.0) / 4
    assert run("reinforce_pp").loss.item() == pytest.approx(by_hand, rel=1e-5)
    terms = run("reinforce_pp", REFERENCE, kl=0.1)
    assert terms.loss.item() == pytest.approx(by_hand + 0.1 * (0.5 + 0.5) / 4, rel=1e-5)


def test_cispo_by_hand() -> None:
    weighted = A * (torch.tensor([-1.5, 1.0, 0.5, 2.0]) * LOGP).sum().item() / 4
    assert run("cispo").loss.item() == pytest.approx(weighted, rel=1e-5)
    capped = A * (torch.tensor([-1.5, 1.0, 0.5, 1.8]) * LOGP).sum().item() / 4
    assert run("cispo", clip_high=0.8).loss.item() == pytest.approx(capped, rel=1e-5)


# A demonstration of two tokens that the policy gives 0.5 and 0.25, verified to earn 5.
SHOWN = torch.tensor([0.5, 0.25]).log()


def run_hybrid(name: str, step: int, **keys: Any) -> LossTerms:
    settings = resolved(RLConfig(recipe=name, **keys))
    row = recipe(settings)
    shown = torch.tensor([False, False, True])
    lengths, rewards = torch.tensor([*LENGTHS, 2]), torch.tensor([5.0, -1.0, 5.0], dtype=torch.float64)
    groups = torch.zeros(3, dtype=torch.int64)
    if share(settings, step) is None:
        advantage = ADVANTAGES[row.advantage](Experience(rewards, torch.arange(4), groups)).advantage
    else:
        own = ADVANTAGES[row.advantage](Experience(rewards[:2], torch.arange(3), groups[:2])).advantage
        advantage = torch.cat([own, torch.ones(1)])
    rows = torch.arange(3)
    mu = share(settings, step)
    weights = mixed_weights(row.reduction, lengths, rows, shown, mu, max_length=MAX_LENGTH)
    member = rows.repeat_interleave(lengths)
    logp, old = torch.cat([LOGP, SHOWN]), torch.cat([OLD, torch.zeros(2)])
    tokens = PolicyTokens(logp, old, advantage[member], member, member, shown[member])
    return policy_loss(row, tokens, weights[member], settings, entropy=torch.ones(6))


def test_luffy_by_hand() -> None:
    # Rewards 5, -1 and the demonstration's 5: less their mean 2, -4 and 2. Three rows of at most four tokens.
    sampled = -1.2 * 2 + (1.0 + 0.8 + 2.0) * 4
    shown = -(0.5 / 0.6 + 0.25 / 0.35) * 2
    assert run_hybrid("luffy", 0).loss.item() == pytest.approx((sampled + shown) / 12, rel=1e-5)


GRPO = -(1.2 * A) / 2 + (1.0 * A + 0.8 * A + 2.0 * A) / 6


def test_chord_by_hand() -> None:
    likelihood = (log(2) + log(4)) / 2
    for step, mu in ((0, 0.9), (100, 0.475), (200, 0.05), (900, 0.05)):
        expected = (1 - mu) * GRPO + mu * likelihood
        assert run_hybrid("chord", step).loss.item() == pytest.approx(expected, rel=1e-5)


def test_chord_phi_by_hand() -> None:
    undecided = (0.5 * 0.5 * log(2) + 0.25 * 0.75 * log(4)) / 2
    for step in (0, 50):
        assert run_hybrid("chord_phi", step).loss.item() == pytest.approx(
            0.9 * GRPO + 0.1 * undecided, rel=1e-5
        )


def test_luffy_shapes_the_gradient_toward_what_the_policy_would_not_say() -> None:
    """d f(p) / d logp = 0.1 p / (p + 0.1)^2: largest at p = 0.1, and less for what is known already."""
    logp = torch.tensor([0.9, 0.1, 0.001]).log().requires_grad_()
    one = torch.zeros(3, dtype=torch.int64)
    tokens = PolicyTokens(logp, torch.zeros(3), torch.ones(3), one, one, torch.ones(3, dtype=torch.bool))
    mixing = MIXINGS["shaped"]
    assert mixing is not None
    mixing.loss(tokens).sum().backward()
    assert logp.grad is not None
    by_hand = [-0.1 * p / (p + 0.1) ** 2 for p in (0.9, 0.1, 0.001)]
    assert logp.grad.tolist() == pytest.approx(by_hand, rel=1e-4)


def test_penalty_and_bonus_are_the_samples_alone() -> None:
    plain, bonus = (run_hybrid("chord", 0, mu=1.0, entropy=e).loss for e in (0.0, 5.0))
    assert plain.item() == bonus.item()


def test_every_row_of_the_table_has_a_hand_worked_test() -> None:
    assert {f"test_{name}_by_hand" for name in RECIPES} <= set(globals())
    plain = {"ppo", "grpo", "dr_grpo", "dapo", "gdpo", "gspo", "rloo", "reinforce_pp", "cispo"}
    assert set(RECIPES) == plain | {"luffy", "chord", "chord_phi"}
    assert {name for name, row in RECIPES.items() if row.demonstrations == "none"} == plain


def test_the_entropy_bonus_is_weighed_as_the_tokens_are() -> None:
    plain, with_bonus = run("dapo").loss, run("dapo", entropy=0.1).loss
    assert (plain - with_bonus).item() == pytest.approx(0.1 * (1 + 2 + 3 + 4) / 4, rel=1e-5)


def test_an_estimator_can_be_named_for_any_row() -> None:
    terms = run("dapo", REFERENCE, kl=0.1, kl_estimator="k1")
    assert terms.kl is not None
    assert terms.kl.tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0], abs=1e-6)


def test_truncated_importance_by_hand() -> None:
    trainer, engine = torch.tensor([0.5, 0.6]).log(), torch.tensor([0.25, 0.5]).log()
    assert truncated_importance(trainer, engine, 1.5).tolist() == pytest.approx([1.5, 1.2])
    assert truncated_importance(trainer, engine, 9.0).tolist() == pytest.approx([2.0, 1.2])


def test_a_correction_weighs_the_surrogate_alone() -> None:
    settings = resolved(RLConfig(recipe="grpo", kl=1.0))
    member = torch.zeros(1, dtype=torch.int64)
    tokens = PolicyTokens(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([3.0]), member, member)
    terms = policy_loss(
        recipe(settings),
        tokens,
        torch.ones(1),
        settings,
        ref_logp=torch.tensor([0.0]),
        correction=torch.tensor([0.5]),
    )
    assert terms.loss.item() == pytest.approx(-1.5 + exp(1) - 2)


def test_value_loss_by_hand() -> None:
    assert value_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).tolist() == [2.0, 0.0]


def test_unset_keys_take_the_row_s_own_values_and_set_ones_stay() -> None:
    dapo = resolved(RLConfig(recipe="dapo"))
    assert (dapo.clip_low, dapo.clip_high, dapo.overlong, dapo.resample) == (0.2, 0.28, 0.2, 3)
    assert dapo.gamma is None
    ppo = resolved(RLConfig(recipe="ppo", clip_high=0.3))
    assert (ppo.clip_low, ppo.clip_high, ppo.epochs, ppo.gamma, ppo.lam, ppo.value) == (
        0.1,
        0.3,
        4,
        0.9,
        0.95,
        0.5,
    )
    for name in RECIPES:
        once = resolved(RLConfig(recipe=name, reward_parts={"outcome": 1.0}))
        assert resolved(once) == once


def test_no_row_has_a_default_for_what_is_no_key() -> None:
    for row in RECIPES.values():
        assert set(row.own) <= set(OWN)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"recipe": "grppo"}, r"rl\.recipe is 'grppo'; needed: one of ppo, grpo"),
        ({"recipe": "rloo", "clip_low": 0.2}, r"rl\.clip_low=0\.2: the recipe 'rloo' has no use for it"),
        ({"recipe": "grpo", "gamma": 0.9}, r"rl\.gamma=0\.9: the recipe 'grpo'"),
        ({"recipe": "grpo", "value_lr": 0.1}, r"rl\.value_lr=0\.1: the recipe 'grpo' has no value head"),
        ({"recipe": "ppo", "kl": 0.1}, r"rl\.kl=0\.1: the recipe 'ppo' has no KL term.*kl_estimator"),
        ({"recipe": "gspo", "group": 1}, r"rl\.group=1: the recipe 'gspo' compares"),
        ({"recipe": "gspo", "tis": 2.0}, r"rl\.tis=2\.0.*old_logprobs"),
        ({"recipe": "grpo", "demonstrations": 1}, r"rl\.demonstrations=1: the recipe 'grpo' has no use"),
        ({"recipe": "rloo", "overlap": True}, r"rl\.overlap=true: the recipe 'rloo'.*older weights"),
        ({"recipe": "grpo", "overlap": True, "old_logprobs": "trainer"}, r"rl\.overlap=true.*rl\.tis"),
        ({"recipe": "gdpo"}, r"rl\.reward_parts is empty: the recipe 'gdpo'"),
        ({"recipe": "luffy", "mu": 0.5}, r"rl\.mu=0\.5: the recipe 'luffy' has no use for it"),
    ],
)
def test_a_key_that_a_row_cannot_use_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolved(RLConfig(**keys))


def test_overlap_is_taken_where_the_ratio_or_the_truncated_weight_corrects() -> None:
    for keys in ({"recipe": "cispo"}, {"recipe": "rloo", "old_logprobs": "trainer", "tis": 2.0}):
        assert resolved(RLConfig(overlap=True, **keys)).overlap


def test_methods_that_do_not_compare_take_single_episodes() -> None:
    for name in ("ppo", "reinforce_pp"):
        assert resolved(RLConfig(recipe=name, group=1)).group == 1


def test_a_penalty_without_a_reference_and_a_bonus_without_entropy_raise() -> None:
    with pytest.raises(UserError, match="ref_logp"):
        run("grpo", kl=0.1)
    assert run("grpo").kl is None
    settings = resolved(RLConfig(recipe="grpo", entropy=0.1))
    tokens = PolicyTokens(LOGP, OLD, OLD, ROW.repeat_interleave(LENGTHS), ROW.repeat_interleave(LENGTHS))
    with pytest.raises(UserError, match="entropy is None"):
        policy_loss(recipe(settings), tokens, OLD, settings)


def test_unknown_parts_of_a_row_raise_and_list_the_known_ones() -> None:
    good = {"advantage": "group_mean", "surrogate": "clip", "reduction": "constant", "kl": "none"}
    Recipe(**good)
    for key in good:
        with pytest.raises(UserError, match=f"{key} is 'nothing'"):
            Recipe(**(good | {key: "nothing"}))
