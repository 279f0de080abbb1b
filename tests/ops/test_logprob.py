"""Every implementation of ``logprob`` against float64 log_softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops import logprob as op
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.logprob import logprob, logprob_scores

IMPLS = [row.impl for row in availability("logprob", torch.empty(0)) if row.available]
WIDE = torch.empty(0, dtype=torch.float64)
WIDE_IMPLS = [row.impl for row in availability("logprob", WIDE) if row.available]
MARGIN = 2.0
"""Error against float64 allowed over that of plain torch in the same precision: sums run in another order."""


def case(
    rows: int, width: int, vocab: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator) * scale
    weight = torch.randn(vocab, width, generator=generator) / max(width, 1) ** 0.5
    targets = torch.randint(vocab, (rows,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The whole table of logits, in the inputs' own precision."""
    logp = F.log_softmax((hidden @ weight.T) / temperature, dim=1)
    entropy = -(logp.exp() * logp).sum(1)
    return logp.gather(1, targets.unsqueeze(1)).squeeze(1), entropy


def gradients(function: object, hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a fixed mixture of both outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
    logp, entropy = function(*leaves, targets)  # type: ignore[operator]
    mix = torch.linspace(-1, 1, len(targets), dtype=logp.dtype)
    ((logp * mix).sum() + (entropy * mix.flip(0)).sum()).backward()
    return [logp.detach(), entropy.detach(), *(x.grad for x in leaves if x.grad is not None)]


@pytest.fixture(params=["one tile", "many tiles"])
def _tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(op, "TILE_BYTES", 96)
        monkeypatch.setattr(op, "MAX_TILE_VOCAB", 7)


@pytest.mark.usefixtures("_tiling")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_error_is_no_larger_than_the_naive_reference_in_the_same_precision(
    impl: str, dtype: torch.dtype, scale: float
) -> None:
    hidden, weight, targets = case(33, 24, 50, dtype, scale)
    truth = gradients(naive, hidden.double(), weight.double(), targets)
    plain = gradients(naive, hidden, weight, targets)
    ours = gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets)
    floor = torch.finfo(dtype).eps
    for name, true, reference, got in zip(("logp", "entropy", "dh", "dw"), truth, plain, ours, strict=True):
        allowed = (reference.double() - true).abs().max()
        unit = floor * true.abs().max().clamp_min(1e-12 if name[0] == "d" else 1.0)
        assert (got.double() - true).abs().max() <= MARGIN * allowed + unit, name


@pytest.mark.usefixtures("_tiling")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradients_pass_gradcheck_in_float64(temperature: float) -> None:
    hidden, weight, targets = case(5, 3, 11, torch.float64)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: logprob(h, w, targets, temperature=temperature, impl="torch"), leaves
    )


@given(rows=st.integers(0, 40), width=st.integers(1, 9), vocab=st.integers(1, 30), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_any_shape_agrees_with_float64(rows: int, width: int, vocab: int, seed: int) -> None:
    hidden, weight, targets = case(rows, width, vocab, seed=seed)
    truth = gradients(naive, hidden.double(), weight.double(), targets)
    for impl in IMPLS:
        ours = gradients(lambda h, w, t, i=impl: logprob(h, w, t, impl=i), hidden, weight, targets)
        for true, got in zip(truth, ours, strict=True):
            assert got.dtype == torch.float32
            assert torch.allclose(got.double(), true, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_give_empty_outputs_and_zero_gradients(impl: str) -> None:
    hidden, weight, targets = case(0, 4, 6)
    logp, entropy, dh, dw = gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets)
    assert logp.shape == entropy.shape == (0,)
    assert dh.shape == (0, 4)
    assert torch.equal(dw, torch.zeros(6, 4))


@pytest.mark.parametrize("impl", WIDE_IMPLS)
def test_temperature_divides_the_logits(impl: str) -> None:
    hidden, weight, targets = case(6, 8, 20, torch.float64)
    for got, true in zip(
        logprob(hidden, weight, targets, temperature=0.7, impl=impl),
        naive(hidden, weight, targets, 0.7),
        strict=True,
    ):
        assert torch.allclose(got, true, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_what_needs_a_gradient_gets_one(impl: str) -> None:
    hidden, weight, targets = case(4, 3, 5)
    for wanted in (hidden, weight):
        leaves = [x.clone().requires_grad_(x is wanted) for x in (hidden, weight)]
        logprob(leaves[0], leaves[1], targets, impl=impl)[0].sum().backward()
        assert [x.grad is not None for x in leaves] == [x is wanted for x in (hidden, weight)]


@pytest.mark.parametrize("impl", IMPLS)
def test_scoring_keeps_no_graph_and_gives_the_same_numbers(impl: str) -> None:
    hidden, weight, targets = case(9, 6, 13)
    scored = logprob_scores(hidden, weight.requires_grad_(), targets, impl=impl)
    trained = logprob(hidden, weight, targets, impl=impl)
    assert all(torch.equal(s, t) for s, t in zip(scored, trained, strict=True))
    assert not any(s.requires_grad for s in scored)
    assert all(t.requires_grad for t in trained)


def test_no_table_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "TILE_BYTES", 4096)
    hidden, weight, targets = case(512, 4, 256)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        gradients(logprob, hidden, weight, targets)
    assert 0 < largest <= 512 * 4  # hidden itself; the table would be 512 * 256


def test_nan_and_infinite_logits_are_reported_with_their_row() -> None:
    for bad in (float("nan"), float("inf")):
        hidden, weight, targets = case(5, 3, 7)
        hidden[3, 1] = bad
        with pytest.raises(UserError, match="row 3 "):
            logprob(hidden, weight, targets)


@pytest.mark.parametrize("target", [-1, -100, 7, 2**40])
def test_targets_outside_the_vocabulary_raise(target: int) -> None:
    hidden, weight, targets = case(5, 3, 7)
    targets[2] = target
    with pytest.raises(UserError, match=rf"targets hold {target}; needed: token ids in \[0, 7\)"):
        logprob(hidden, weight, targets)


def test_wrong_shapes_types_and_temperatures_raise_and_name_the_argument() -> None:
    hidden, weight, targets = case(5, 3, 7)
    for arguments, message in (
        ((hidden[0], weight, targets), "hidden and weight"),
        ((hidden, weight[:, :2], targets), "hidden and weight"),
        ((hidden, weight[:0], targets), "V > 0"),
        ((hidden, weight, targets[:4]), r"targets .*\[5\]"),
        ((hidden, weight, targets.int()), "targets is torch.int32"),
        ((hidden, weight.double(), targets), "one floating type"),
        ((hidden.long(), weight.long(), targets), "one floating type"),
        ((hidden.to("meta"), weight, targets), "one device"),
    ):
        with pytest.raises(UserError, match=message):
            logprob(*arguments)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="temperature"):
            logprob(hidden, weight, targets, temperature=temperature)
