"""Every implementation against float64, at every instruction-set level, and against transformers' own module."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.swiglu import swiglu, swiglu_torch

IMPLS = [row.impl for row in availability("swiglu") if row.available]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""


def rows_of(rows: int, width: int, dtype: torch.dtype, scale: float, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2 * width, generator=g).mul_(scale).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    assert not got.isnan().any()
    return float((got.double() - exact).abs().max()) if got.numel() else 0.0


def check(impl: str, gate_up: Tensor) -> None:
    exact = swiglu_torch(gate_up.double())
    got = swiglu(gate_up, impl=impl)
    assert got.dtype == gate_up.dtype
    assert got.shape == exact.shape
    floor = torch.finfo(gate_up.dtype).eps * float(exact.abs().max() if exact.numel() else 0)
    assert error(got, exact) <= MARGIN * max(error(swiglu_torch(gate_up), exact), floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@given(
    rows=st.integers(0, 70), width=st.integers(1, 100), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e6]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, rows: int, width: int, scale: float, seed: int
) -> None:
    check(impl, rows_of(rows, width, dtype, scale, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for width in (1, 15, 16, 33, 1536):
        check("cpp", rows_of(37, width, dtype, 2.0, width))


def test_output_is_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert not swiglu(rows_of(5, 33, torch.float32, 1.0, 0), impl="cpp").isnan().any()


@pytest.mark.parametrize("impl", IMPLS)
def test_bf16_rounds_where_transformers_does(impl: str) -> None:
    gate_up = rows_of(64, 1536, torch.bfloat16, 2.0, 3)
    gate, up = gate_up.chunk(2, 1)
    expected = F.silu(gate) * up
    # e^x of two libraries differs in the last place: one rounding in some thousand may fall the other way.
    assert (swiglu(gate_up, impl=impl) != expected).float().mean() < 2e-3


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_input_is_read_rightly(impl: str) -> None:
    check(impl, rows_of(8, 64, torch.float32, 1.0, 5)[:, ::2])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_does_not_depend_on_its_batch(impl: str) -> None:
    gate_up = rows_of(50, 77, torch.bfloat16, 1.0, 6)
    assert torch.equal(swiglu(gate_up[31:32], impl=impl)[0], swiglu(gate_up, impl=impl)[31])


def test_bad_input_names_the_argument() -> None:
    for bad in (torch.zeros(4), torch.zeros(2, 3), torch.zeros(2, 0), torch.zeros(2, 4, dtype=torch.int64)):
        with pytest.raises(UserError, match="gate_up is torch"):
            swiglu(bad)
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'swiglu'.*float64"):
        swiglu(torch.zeros(2, 4).double(), impl="cpp")
