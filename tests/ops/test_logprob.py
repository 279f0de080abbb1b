"""Every implementation of ``logprob`` against float64 log_softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.ops import logprob as op
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.logprob import logprob, logprob_scores

IMPLS = [row.impl for row in availability("logprob", torch.empty(0)) if row.available]
COMPILED = [impl for impl in IMPLS if impl == "cpp"]
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
    check_gradients(impl, *case(33, 24, 50, dtype, scale))


def check_gradients(impl: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    truth = gradients(naive, hidden.double(), weight.double(), targets)
    plain = gradients(naive, hidden, weight, targets)
    ours = gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets)
    floor = torch.finfo(hidden.dtype).eps
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
    dtype = torch.float64 if impl == "torch" else torch.float32
    hidden, weight, targets = case(6, 8, 20, dtype)
    for got, true in zip(
        logprob(hidden, weight, targets, temperature=0.7, impl=impl),
        naive(hidden.double(), weight.double(), targets, 0.7),
        strict=True,
    ):
        assert torch.allclose(got.double(), true, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", COMPILED)
def test_the_temperature_reaches_the_gradients(impl: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = case(70, 24, 1000, dtype)
    truth = gradients(
        lambda h, w, t: logprob(h, w, t, temperature=0.6, impl="torch"),
        hidden.double(),
        weight.double(),
        targets,
    )
    usual, got = (
        gradients(lambda h, w, t, i=i: logprob(h, w, t, temperature=0.6, impl=i), hidden, weight, targets)
        for i in ("torch", impl)
    )
    for true, reference, ours in zip(truth, usual, got, strict=True):
        floor = torch.finfo(ours.dtype).eps * true.abs().max()
        assert (ours.double() - true).abs().max() <= MARGIN * (reference.double() - true).abs().max() + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for rows, width, vocab in ((1, 1, 1), (33, 17, 961), (75, 50, 2003)):
        check_gradients("cpp", *case(rows, width, vocab, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", COMPILED)
def test_many_rows_and_columns_are_right(impl: str, dtype: torch.dtype) -> None:
    # Over one span of rows, with an odd rest, and over one segment of the vocabulary.
    check_gradients(impl, *case(2121, 20, 1111, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", COMPILED)
def test_outputs_are_written_everywhere(
    impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, float("nan")))
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *size, dtype: empty(*size, dtype=dtype).fill_(255 if dtype == torch.uint8 else float("nan")),
    )
    for rows, width, vocab in ((3, 5, 7), (67, 33, 1001)):
        hidden, weight, targets = case(rows, width, vocab, dtype)
        for out in gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets):
            assert not out.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", COMPILED)
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    impl: str, dtype: torch.dtype
) -> None:
    hidden, weight, targets = case(150, 32, 1500, dtype)
    weight = weight.requires_grad_(False)

    def run(rows: slice) -> list[Tensor]:
        leaf = hidden[rows].clone().requires_grad_()
        logp, entropy = logprob(leaf, weight, targets[rows], impl=impl)
        (logp.sum() + entropy.sum()).backward()
        return [logp.detach(), entropy.detach(), leaf.grad]  # type: ignore[list-item]

    whole, before = run(slice(0, 150)), torch.get_num_threads()
    for rows in (slice(0, 1), slice(77, 78), slice(60, 133)):
        assert all(torch.equal(w[rows], part) for w, part in zip(whole, run(rows), strict=True))
    both = gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            again = gradients(lambda h, w, t: logprob(h, w, t, impl=impl), hidden, weight, targets)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(both, again, strict=True))


def test_scratch_memory_of_the_compiled_kernel_is_small() -> None:
    for width, vocab in ((576, 49152), (1024, 128256)):
        for dtype in (0, 1):
            for wanted in ((False, False), (True, True)):
                size = _C.logprob_scratch(2048, width, vocab, 2, dtype, *wanted)
                assert 0 < size < 48 << 20
            assert _C.logprob_scratch(2048, width, 10 * vocab, 2, dtype, True, True) == size


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
        gradients(lambda h, w, t: logprob(h, w, t, impl="torch"), hidden, weight, targets)
    assert 0 < largest <= 512 * 4  # hidden itself; the table would be 512 * 256


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_and_infinite_logits_are_reported_with_their_row(impl: str) -> None:
    for bad in (float("nan"), float("inf")):
        hidden, weight, targets = case(5, 3, 7)
        hidden[3, 1] = bad
        with pytest.raises(UserError, match="row 3 "):
            logprob(hidden, weight, targets, impl=impl)


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
