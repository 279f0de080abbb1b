"""Every implementation against float64, at every instruction-set level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.swiglu import swiglu, swiglu_torch

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
