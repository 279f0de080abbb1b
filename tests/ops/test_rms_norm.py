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
from sftrl_fast.ops.rms_norm import rms_norm, rms_norm_torch

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


def test_outputs_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, float("nan")))
    x, residual, weight = inputs(5, 33, torch.float32, 1.0, 0)
    for tensor in rms_norm(x, weight, eps=1e-5, residual=residual, impl="cpp"):
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
    with pytest.raises(UserError, match="eps is 0"):
        rms_norm(x, weight, eps=0)
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'rms_norm'.*float64"):
        rms_norm(x.double(), weight.double(), eps=1e-5, impl="cpp")
