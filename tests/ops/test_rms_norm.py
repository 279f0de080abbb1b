"""Every implementation against float64, at every instruction-set level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.rms_norm import rms_norm, rms_norm_backward, rms_norm_backward_torch, rms_norm_torch

IMPLS = [row.impl for row in availability("rms_norm", torch.empty(0)) if row.available]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""


def inputs(
    rows: int, width: int, dtype: torch.dtype, scale: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(rows, width, generator=g).mul_(scale).to(dtype) for _ in range(2))
    return x, residual, torch.randn(width, generator=g).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    assert not got.isnan().any()
    return float((got.double() - exact).abs().max()) if got.numel() else 0.0


def check(impl: str, x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    wide = None if residual is None else residual.double()
    exact, exact_sum = rms_norm_torch(x.double(), weight.double(), 1e-5, wide)
    usual, usual_sum = rms_norm_torch(x, weight, 1e-5, residual)
    got, got_sum = rms_norm(x, weight, eps=1e-5, residual=residual, impl=impl)
    assert got.dtype == x.dtype
    floor = torch.finfo(x.dtype).eps * float(exact.abs().max() if exact.numel() else 0)
    assert error(got, exact) <= MARGIN * max(error(usual, exact), floor)
    assert error(got_sum, exact_sum) <= error(usual_sum, exact_sum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@given(
    rows=st.integers(0, 70), width=st.integers(1, 200), scale=st.sampled_from([1e-6, 1.0, 1e6]),
    with_residual=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, rows: int, width: int, scale: float, with_residual: bool, seed: int
) -> None:
    x, residual, weight = inputs(rows, width, dtype, scale, seed)
    check(impl, x, residual if with_residual else None, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for width in (1, 15, 16, 576, 579):
        x, residual, weight = inputs(67, width, dtype, 1.0, width)
        check("cpp", x, residual, weight)


BACKWARD_IMPLS = [row.impl for row in availability("rms_norm_backward", torch.empty(0)) if row.available]


def check_backward(impl: str, x: Tensor, weight: Tensor, grad: Tensor, passed: Tensor | None) -> None:
    wide = None if passed is None else passed.double()
    exact = rms_norm_backward_torch(x.double(), weight.double(), grad.double(), 1e-5, wide)
    usual = rms_norm_backward_torch(x, weight, grad, 1e-5, passed)
    got = rms_norm_backward(x, weight, grad, eps=1e-5, passed=passed, impl=impl)
    for mine, usually, true, floor in zip(got, usual, exact, backward_floors(x, weight, grad), strict=True):
        assert mine.dtype == x.dtype
        last = torch.finfo(x.dtype).eps * float(true.abs().max() if true.numel() else 0)
        assert error(mine, true) <= MARGIN * max(error(usually, true), last + floor)


def backward_floors(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[float, float]:
    """What both results' parts round to in float32, which stays where their difference or sum cancels."""
    if not x.numel():
        return 0.0, 0.0
    wide, slope = x.double(), grad.double()
    scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-5)
    unit = torch.finfo(torch.float32).eps
    of_weight = torch.finfo(x.dtype).eps * (slope * wide * scale).abs().sum(0)
    return unit * float((slope * weight.double() * scale).abs().max()), float(of_weight.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", BACKWARD_IMPLS)
@given(
    rows=st.sampled_from([0, 1, 7, 64, 65, 300]), width=st.integers(1, 200),
    scale=st.sampled_from([1e-3, 1.0, 1e3]), with_passed=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_of_the_gradients_is_the_references(
    impl: str, dtype: torch.dtype, rows: int, width: int, scale: float, with_passed: bool, seed: int
) -> None:
    x, grad, weight = inputs(rows, width, dtype, scale, seed)
    passed = inputs(rows, width, dtype, 1.0, seed + 1)[0]
    check_backward(impl, x, weight, grad, passed if with_passed else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_has_right_gradients(dtype: torch.dtype) -> None:
    for width in (1, 15, 16, 576, 579):
        x, grad, weight = inputs(67, width, dtype, 1.0, width)
        check_backward("cpp", x, weight, grad, grad)


def test_gradients_are_those_of_the_definition() -> None:
    x, grad, weight = (part.double() for part in inputs(5, 12, torch.float32, 1.0, 0))
    x.requires_grad_()
    weight.requires_grad_()
    normed = weight * x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)
    expected = torch.autograd.grad((normed * grad).sum() + (3 * x).sum(), [x, weight])
    found = rms_norm_backward_torch(x.detach(), weight.detach(), grad, 1e-5, torch.full_like(grad, 3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_threads_change_no_bit_of_the_gradients() -> None:
    x, grad, weight = inputs(5000, 24, torch.float32, 1.0, 0)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(rms_norm_backward(x, weight, grad, eps=1e-5, impl="cpp"))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_outputs_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, float("nan")))
    x, residual, weight = inputs(5, 33, torch.float32, 1.0, 0)
    made = rms_norm(x, weight, eps=1e-5, residual=residual, impl="cpp")
    made += rms_norm_backward(x, weight, residual, eps=1e-5, impl="cpp")
    for tensor in made:
        assert not tensor.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
def test_bf16_rounds_where_transformers_does(impl: str, dtype: torch.dtype) -> None:
    x, _, weight = inputs(64, 576, dtype, 1.0, 3)
    norm = LlamaRMSNorm(576, eps=1e-5).to(dtype)
    norm.weight.data.copy_(weight)
    expected = norm(x).detach()
    got, _ = rms_norm(x, weight, eps=1e-5, impl=impl)
    # The float32 sums run in another order: one rounding in some thousand may fall the other way.
    assert (got != expected).float().mean() < 2e-3


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_input_is_read_rightly(impl: str) -> None:
    x, _, weight = inputs(8, 64, torch.float32, 1.0, 5)
    expected, _ = rms_norm(x[:, ::2].contiguous(), weight[::2].contiguous(), eps=1e-5, impl=impl)
    got, _ = rms_norm(x[:, ::2], weight[::2], eps=1e-5, impl=impl)
    assert torch.equal(got, expected)


def test_bad_input_names_the_argument() -> None:
    x, _, weight = inputs(2, 4, torch.float32, 1.0, 0)
    with pytest.raises(UserError, match=r"x is torch.float32 \[4\]"):
        rms_norm(x[0], weight, eps=1e-5)
    with pytest.raises(UserError, match=r"weight is torch.float32 \[3\]"):
        rms_norm(x, weight[:3], eps=1e-5)
    with pytest.raises(UserError, match=r"residual is torch.bfloat16"):
        rms_norm(x, weight, eps=1e-5, residual=x.bfloat16())
    with pytest.raises(UserError, match=r"grad is torch.float32 \[1, 4\]"):
        rms_norm_backward(x, weight, x[:1], eps=1e-5)
    with pytest.raises(UserError, match=r"passed is torch.bfloat16"):
        rms_norm_backward(x, weight, x, eps=1e-5, passed=x.bfloat16())
    with pytest.raises(UserError, match="eps is 0"):
        rms_norm(x, weight, eps=0)
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'rms_norm'.*float64"):
        rms_norm(x.double(), weight.double(), eps=1e-5, impl="cpp")
