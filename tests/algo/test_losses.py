"""Surrogates, penalties and reductions against numbers worked out by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.algo.kl import KLS, k1, k2, k3
from sftrl_fast.algo.reductions import REDUCTIONS, token_weights
from sftrl_fast.algo.sft_losses import SFT_LOSSES, cross_entropy, dft, psft
from sftrl_fast.algo.surrogates import (
    SURROGATES,
    PolicyTokens,
    clip,
    clip_sequence,
    clip_turn,
    clip_weight,
    reinforce,
)
from sftrl_fast.core import UserError


def tokens(
    logp: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, turn: list[int] | None = None
) -> PolicyTokens:
    """Tokens of one row whose turns are numbered; each token a turn of its own without ``turn``."""
    turns = torch.arange(len(logp)) if turn is None else torch.tensor(turn)
    return PolicyTokens(logp, old, advantage, turns, torch.zeros(len(logp), dtype=torch.int64))


def test_clip_by_hand_on_both_sides_of_both_bounds() -> None:
    # ratios 1.5, 1.5, 0.5, 0.5, 1.1 against the bounds 0.8 and 1.3
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    logp = ratio.log().requires_grad_()
    terms = clip(tokens(logp, torch.zeros(5), advantage), 0.2, 0.3)
    assert terms.loss.tolist() == pytest.approx([-2.6, 3.0, -1.0, 1.6, -2.2])
    assert terms.clipped.tolist() == [True, False, False, True, False]
    assert terms.ratio.tolist() == pytest.approx(ratio.tolist())
    terms.loss.sum().backward()
    # d(-r A)/d logp = -r A where the ratio is free, 0 where it was clipped
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2])


def test_clip_turn_by_hand() -> None:
    # Turn 0 has ratios 2 and 0.55, together 1.1, free; turn 1 has 1.5, clipped to 1.3.
    ratio = torch.tensor([2.0, 0.55, 1.5])
    logp = ratio.log().requires_grad_()
    terms = clip_turn(tokens(logp, torch.zeros(3), torch.tensor([2.0, 2.0, 1.0]), [0, 0, 1]), 0.2, 0.3)
    assert terms.loss.tolist() == pytest.approx([-2.2, -2.2, -1.3])
    assert terms.ratio.tolist() == pytest.approx([1.1, 1.1, 1.5])
    assert terms.clipped.tolist() == [False, False, True]
    terms.loss.sum().backward()
    # Each token of a turn moves the losses of both of its tokens.
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-4.4, -4.4, 0.0])


def test_clip_sequence_by_hand() -> None:
    # The row's ratios are 4, 1 and 1/4, whose geometric mean is 1; then with 32 in place of 4, 2.
    for first, pooled, loss in ((4.0, 1.0, -3.0), (32.0, 2.0, -3.9)):
        logp = torch.tensor([first, 1.0, 0.25]).log().requires_grad_()
        terms = clip_sequence(tokens(logp, torch.zeros(3), torch.full((3,), 3.0), [0, 1, 1]), 0.2, 0.3)
        assert terms.ratio.tolist() == pytest.approx([pooled] * 3)
        assert terms.loss.tolist() == pytest.approx([loss] * 3)
        terms.loss.sum().backward()
        assert logp.grad is not None
        assert logp.grad.tolist() == pytest.approx([-3.0 if pooled == 1 else 0.0] * 3)


def test_clip_weight_by_hand() -> None:
    logp = torch.tensor([log(0.5), log(0.9), log(0.1)], requires_grad=True)
    old = torch.tensor([log(0.25), log(0.1), log(0.5)])
    terms = clip_weight(tokens(logp, old, torch.tensor([1.0, -1.0, 2.0])), 0.5, 4.0)
    # ratios 2, 9 and 0.2; the bounds 0.5 and 5
    assert terms.loss.tolist() == pytest.approx([-2 * log(0.5), 5 * log(0.9), -0.5 * 2 * log(0.1)])
    assert terms.clipped.tolist() == [False, True, True]
    terms.loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-2.0, 5.0, -1.0])


def test_on_fresh_samples_every_surrogate_has_the_gradient_of_reinforce() -> None:
    old, advantage = torch.tensor([-1.0, -3.0]), torch.tensor([2.0, -0.5])
    for name, surrogate in SURROGATES.items():
        logp = old.clone().requires_grad_()
        each = tokens(logp, old, advantage)
        own_rows = PolicyTokens(each.logp, old, advantage, each.turn, torch.arange(2))
        surrogate(own_rows, 0.2, 0.2).loss.sum().backward()
        assert logp.grad is not None
        assert logp.grad.tolist() == [-2.0, 0.5], name


def test_surrogates_take_no_tokens_at_all() -> None:
    nothing = torch.zeros(0)
    for surrogate in SURROGATES.values():
        assert len(surrogate(tokens(nothing, nothing, nothing), 0.2, 0.2).loss) == 0


def test_reinforce_by_hand() -> None:
    logp = torch.tensor([log(0.5), log(0.25)], requires_grad=True)
    old = torch.tensor([log(0.25), log(0.25)])
    terms = reinforce(tokens(logp, old, torch.tensor([3.0, -1.0])), 0.2, 0.2)
    assert terms.loss.tolist() == pytest.approx([3 * log(2), -log(4)])
    assert terms.ratio.tolist() == pytest.approx([2.0, 1.0])
    assert not terms.ratio.requires_grad
    assert terms.clipped.tolist() == [False, False]


def test_estimators_of_the_divergence_by_hand() -> None:
    policy, reference = torch.tensor([-1.0]), torch.tensor([-0.5])
    assert k1(policy, reference).item() == pytest.approx(-0.5)
    assert k2(policy, reference).item() == pytest.approx(0.125)


def test_the_gradients_of_k1_and_k2_are_the_divergence_s() -> None:
    logits = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    reference = torch.tensor([0.2, 0.2, 0.6])
    policy = logits.softmax(0)
    (policy * (policy / reference).log()).sum().backward()
    assert logits.grad is not None
    expected = logits.grad.clone()
    for estimator in (k1, k2):
        logits.grad = None
        logp = logits.log_softmax(0)
        (logp.exp().detach() * estimator(logp, reference.log())).sum().backward()
        assert logits.grad.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_k3_by_hand_and_its_mean_under_the_policy_is_the_divergence() -> None:
    assert k3(torch.tensor([-1.0]), torch.tensor([-0.5])).item() == pytest.approx(exp(0.5) - 0.5 - 1)
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimate = k3(policy.log(), reference.log())
    assert (estimate >= 0).all()
    divergence = (policy * (policy / reference).log()).sum()
    assert (policy * estimate).sum().item() == pytest.approx(divergence.item(), rel=1e-5)


def test_reductions_by_hand_with_turns_and_rows_that_train_nothing() -> None:
    # Row 0 answers with 2 tokens, row 1 with 1 and then with 5, row 2 with none.
    turns, row = torch.tensor([2, 1, 5, 0]), torch.tensor([0, 1, 1, 2])
    expected = {
        "token_mean": [1 / 8, 1 / 8, 1 / 8, 0],
        "turn_mean": [1 / 6, 1 / 3, 1 / 15, 0],
        "sequence_mean": [1 / 4, 1 / 12, 1 / 12, 0],
        "sequence_sum": [1 / 2, 1 / 2, 1 / 2, 0],
        "constant": [1 / 20, 1 / 20, 1 / 20, 0],
    }
    assert set(expected) == set(REDUCTIONS)
    for name, weights in expected.items():
        assert token_weights(name, turns, row, max_length=10).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("name", list(REDUCTIONS))
@given(lengths=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=6))
@settings(max_examples=25, deadline=None)
def test_weights_are_finite_whatever_is_empty(name: str, lengths: list[list[int]]) -> None:
    turns = torch.tensor([n for row in lengths for n in row], dtype=torch.int64)
    row = torch.tensor([i for i, row in enumerate(lengths) for _ in row], dtype=torch.int64)
    weights = token_weights(name, turns, row, max_length=27)
    assert torch.isfinite(weights).all()
    assert ((weights > 0) == (turns > 0)).all()


def test_bad_reduction_input_raises_and_names_the_argument() -> None:
    lengths, row = torch.tensor([1, 2]), torch.tensor([0, 1])
    with pytest.raises(UserError, match=r"'median'.*token_mean"):
        token_weights("median", lengths, row, max_length=1)
    for bad in (lengths.float(), lengths - 2, lengths[None]):
        with pytest.raises(UserError, match="turns"):
            token_weights("constant", bad, row, max_length=1)
    with pytest.raises(UserError, match="row is"):
        token_weights("constant", lengths, row[:1], max_length=1)
    with pytest.raises(UserError, match="max_length is 0"):
        token_weights("constant", lengths, row, max_length=0)


def test_sft_losses_by_hand() -> None:
    assert set(SFT_LOSSES) == {"cross_entropy", "dft", "psft"}
    old = torch.tensor([0.5, 0.2]).log()
    for loss, expected, slopes in (
        (cross_entropy, [-log(0.6), -log(0.1)], [-1.0, -1.0]),
        (dft, [-0.6 * log(0.6), -0.1 * log(0.1)], [-0.6, -0.1]),
        # ratios 1.2, beyond the bound 1.1, and 0.5
        (psft, [-1.1, -0.5], [0.0, -0.5]),
    ):
        logp = torch.tensor([0.6, 0.1]).log().requires_grad_()
        found = loss(logp, old, 0.1)
        assert found.tolist() == pytest.approx(expected)
        found.sum().backward()
        assert logp.grad is not None
        assert logp.grad.tolist() == pytest.approx(slopes)


def test_a_penalty_is_named_for_each_estimator() -> None:
    assert set(KLS) == {"none", "k1", "k2", "k3"}
    assert KLS["none"] is None
