"""Surrogates, penalties and reductions against numbers worked out by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.algo.kl import KLS, k3
from sftrl_fast.algo.reductions import REDUCTIONS, token_weights
from sftrl_fast.algo.surrogates import SURROGATES, clip, reinforce
from sftrl_fast.core import UserError


def test_clip_by_hand_on_both_sides_of_both_bounds() -> None:
    # ratios 1.5, 1.5, 0.5, 0.5, 1.1 against the bounds 0.8 and 1.3
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    logp = ratio.log().requires_grad_()
    terms = clip(logp, torch.zeros(5), advantage, 0.2, 0.3)
    assert terms.loss.tolist() == pytest.approx([-2.6, 3.0, -1.0, 1.6, -2.2])
    assert terms.clipped.tolist() == [True, False, False, True, False]
    assert terms.ratio.tolist() == pytest.approx(ratio.tolist())
    terms.loss.sum().backward()
    # d(-r A)/d logp = -r A where the ratio is free, 0 where it was clipped
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2])


def test_clip_on_fresh_samples_has_the_gradient_of_reinforce() -> None:
    old, advantage = torch.tensor([-1.0, -3.0]), torch.tensor([2.0, -0.5])
    gradients = []
    for surrogate in (clip, reinforce):
        logp = old.clone().requires_grad_()
        surrogate(logp, old, advantage, 0.2, 0.2).loss.sum().backward()
        assert logp.grad is not None
        gradients.append(logp.grad.tolist())
    assert gradients[0] == gradients[1] == [-2.0, 0.5]


def test_reinforce_by_hand() -> None:
    logp = torch.tensor([log(0.5), log(0.25)], requires_grad=True)
    terms = reinforce(logp, torch.tensor([log(0.25), log(0.25)]), torch.tensor([3.0, -1.0]), 0.2, 0.2)
    assert terms.loss.tolist() == pytest.approx([3 * log(2), -log(4)])
    assert terms.ratio.tolist() == pytest.approx([2.0, 1.0])
    assert not terms.ratio.requires_grad
    assert terms.clipped.tolist() == [False, False]


def test_k3_by_hand_and_its_mean_under_the_policy_is_the_divergence() -> None:
    assert k3(torch.tensor([-1.0]), torch.tensor([-0.5])).item() == pytest.approx(exp(0.5) - 0.5 - 1)
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimate = k3(policy.log(), reference.log())
    assert (estimate >= 0).all()
    divergence = (policy * (policy / reference).log()).sum()
    assert (policy * estimate).sum().item() == pytest.approx(divergence.item(), rel=1e-5)


def test_reductions_by_hand_with_a_row_that_trains_nothing() -> None:
    lengths = torch.tensor([2, 6, 0])
    expected = {
        "token_mean": [1 / 8, 1 / 8, 0],
        "sequence_mean": [1 / 4, 1 / 12, 0],
        "sequence_sum": [1 / 2, 1 / 2, 0],
        "constant": [1 / 20, 1 / 20, 0],
    }
    assert set(expected) == set(REDUCTIONS)
    for name, weights in expected.items():
        assert token_weights(name, lengths, max_length=10).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("name", list(REDUCTIONS))
@given(
    lengths=st.lists(st.integers(0, 9), max_size=8),
    cut=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_micro_batches_add_up_to_the_batch_whatever_the_cut(
    name: str, lengths: list[int], cut: int, seed: int
) -> None:
    counts = torch.tensor(lengths, dtype=torch.int64)
    weights = token_weights(name, counts, max_length=9)
    assert torch.isfinite(weights).all()
    losses = [torch.randn(n, generator=torch.Generator().manual_seed(seed + n)).double() for n in lengths]
    whole = sum(float(w) * float(x.sum()) for w, x in zip(weights, losses, strict=True))
    parts = 0.0
    for rows in (slice(0, cut), slice(cut, None)):
        per_token = weights[rows].double().repeat_interleave(counts[rows])
        parts += float((per_token * torch.cat([torch.zeros(0).double(), *losses[rows]])).sum())
    assert parts == pytest.approx(whole, abs=1e-9)


def test_bad_reduction_input_raises_and_names_the_argument() -> None:
    lengths = torch.tensor([1, 2])
    with pytest.raises(UserError, match=r"'median'.*token_mean"):
        token_weights("median", lengths, max_length=1)
    for bad in (lengths.float(), lengths - 2, lengths[None]):
        with pytest.raises(UserError, match="lengths"):
            token_weights("constant", bad, max_length=1)
    with pytest.raises(UserError, match="max_length is 0"):
        token_weights("constant", lengths, max_length=0)


def test_tables_hold_what_the_recipes_may_name() -> None:
    assert set(SURROGATES) == {"clip", "reinforce"}
    assert KLS["none"] is None
    assert KLS["k3"] is k3
