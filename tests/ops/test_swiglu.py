"""Every implementation against float64, at every instruction-set level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.swiglu import swiglu, swiglu_backward, swiglu_backward_torch, swiglu_torch

IMPLS = [row.impl for row in availability("swiglu", torch.empty(0)) if row.available]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""


def inputs(rows: int, width: int, dtype: torch.dtype, scale: float, seed: int) -> Tensor:
    return torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed)).mul_(scale).to(dtype)


def check(impl: str, x: Tensor) -> None:
    exact, usual, got = swiglu_torch(x.double()), swiglu_torch(x), swiglu(x, impl=impl)
    assert got.dtype == x.dtype
    assert not got.isnan().any()
    floor = torch.finfo(x.dtype).eps * exact.abs()
    assert (
        (got.double() - exact).abs() <= MARGIN * torch.maximum((usual.double() - exact).abs(), floor) + 1e-37
    ).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@given(
    rows=st.integers(0, 40), width=st.integers(1, 150), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e6]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, rows: int, width: int, scale: float, seed: int
) -> None:
    check(impl, inputs(rows, width, dtype, scale, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for width in (1, 15, 16, 1536, 1543):
        check("cpp", inputs(9, width, dtype, 3.0, width))


BACKWARD_IMPLS = [row.impl for row in availability("swiglu_backward", torch.empty(0)) if row.available]


def check_backward(impl: str, x: Tensor, grad: Tensor) -> None:
    exact, usual = swiglu_backward_torch(x.double(), grad.double()), swiglu_backward_torch(x, grad)
    got = swiglu_backward(x, grad, impl=impl)
    for mine, usually, true in zip(got, usual, exact, strict=True):
        assert mine.dtype == x.dtype
        assert not mine.isnan().any()
        # 1 + gate (1 - sigmoid) cancels near its root: a unit of the largest counts there.
        floor = torch.finfo(torch.float32).eps * true.abs().amax(1, keepdim=True) + (
            torch.finfo(x.dtype).eps * true.abs()
        )
        error = torch.maximum((usually.double() - true).abs(), floor)
        assert ((mine.double() - true).abs() <= MARGIN * error + 1e-37).all()
    assert torch.equal(got[1], swiglu(x, impl=impl))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", BACKWARD_IMPLS)
@given(
    rows=st.integers(0, 40), width=st.integers(1, 150), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e6]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_of_the_gradient_is_the_references(
    impl: str, dtype: torch.dtype, rows: int, width: int, scale: float, seed: int
) -> None:
    grad = inputs(rows, width, dtype, 1.0, seed + 1)[:, :width].contiguous()
    check_backward(impl, inputs(rows, width, dtype, scale, seed), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_has_the_right_gradient(dtype: torch.dtype) -> None:
    for width in (1, 15, 16, 1536, 1543):
        check_backward("cpp", inputs(9, width, dtype, 3.0, width), inputs(9, width, dtype, 1.0, 0)[:, :width])


def test_the_gradient_is_that_of_the_definition() -> None:
    x, grad = (
        inputs(4, 9, torch.float32, 2.0, 0).double(),
        inputs(4, 9, torch.float32, 1.0, 1).double()[:, :9],
    )
    x.requires_grad_()
    (expected,) = torch.autograd.grad((swiglu_definition(x) * grad).sum(), [x])
    found, out = swiglu_backward_torch(x.detach(), grad)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, swiglu_definition(x).detach(), rtol=1e-12, atol=1e-12)


def swiglu_definition(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=1)
    return gate / (1 + (-gate).exp()) * up


def test_outputs_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(float("nan"))
    )
    assert not swiglu(inputs(5, 33, torch.float32, 1.0, 0), impl="cpp").isnan().any()


def test_bad_input_names_the_argument() -> None:
    for bad in (torch.ones(4), torch.ones(2, 3), torch.ones(2, 0), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(UserError, match="gate_up is"):
            swiglu(bad)
        with pytest.raises(UserError, match="gate_up is"):
            swiglu_backward(bad, bad)
    with pytest.raises(
        UserError, match=r"grad is torch.float32 \[2, 4\] on cpu; needed: torch.float32 \[2, 2\]"
    ):
        swiglu_backward(torch.ones(2, 4), torch.ones(2, 4))
