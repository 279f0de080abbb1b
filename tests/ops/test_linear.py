"""Every implementation against float64, at every instruction-set level; a row's bits never depend on other rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.linear import linear, pack_linear

IMPLS = [row.impl for row in availability("linear") if row.available]
LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
COMPILED = [impl for impl in IMPLS if impl != "torch"]
DTYPES = [torch.float32, torch.bfloat16]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same types."""


def inputs(
    rows: int, k: int, n: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=g) * scale
    weight, bias = torch.randn(n, k, generator=g), torch.randn(n, generator=g) * scale
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    assert not got.isnan().any()
    return float((got.double() - exact).abs().max()) if got.numel() else 0.0


def check(impl: str, x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> None:
    exact = linear(
        x.double(),
        pack_linear(weight.double(), None if bias is None else bias.double(), impl="torch"),
    )
    usual = linear(x, pack_linear(weight, bias, impl="torch"), out_dtype=out_dtype)
    got = linear(x, pack_linear(weight, bias, impl=impl), out_dtype=out_dtype)
    assert got.dtype == (out_dtype or x.dtype)
    assert got.shape == exact.shape
    # The unit is that of the sum's terms: they may cancel.
    terms = x.double().abs() @ weight.double().abs().T
    floor = torch.finfo(got.dtype).eps * float(exact.abs().max() if exact.numel() else 0)
    floor += torch.finfo(torch.float32).eps * float(terms.max() if terms.numel() else 0)
    assert error(got, exact) <= MARGIN * max(error(usual, exact), floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLS)
@given(
    rows=st.integers(0, 40), k=st.integers(1, 150), n=st.integers(1, 150), scale=st.sampled_from([1e-6, 1.0, 1e6]),
    with_bias=st.booleans(), wide=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str,
    dtype: torch.dtype,
    rows: int,
    k: int,
    n: int,
    scale: float,
    with_bias: bool,
    wide: bool,
    seed: int,
) -> None:
    x, weight, bias = inputs(rows, k, n, dtype, scale, seed)
    check(impl, x, weight, bias if with_bias else None, torch.float32 if wide else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for k, n in ((1, 1), (15, 47), (64, 48), (577, 145)):
        x, weight, bias = inputs(21, k, n, dtype, seed=k)
        check("cpp", x, weight, bias, None)
        check("cpp", x, weight, None, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("level")
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(300, 576, 500, dtype)  # rows enough for panels that are taken together
    for impl in COMPILED:
        packed = pack_linear(weight, bias, impl=impl)
        whole = linear(x, packed, out_dtype=torch.float32)
        for rows in (1, 3, 8, 16, 64):
            for start in (0, 61, 300 - rows):
                part = linear(x[start : start + rows], packed, out_dtype=torch.float32)
                assert torch.equal(part, whole[start : start + rows]), (impl, rows, start)
        x[7] = float("nan")
        assert torch.equal(linear(x, packed, out_dtype=torch.float32)[8:], whole[8:])
        x[7] = 0


@pytest.mark.parametrize("impl", COMPILED)
def test_a_packed_weight_serves_every_level(impl: str) -> None:
    x, weight, _ = inputs(5, 70, 100, torch.bfloat16)
    packed, before = pack_linear(weight, impl=impl), _C.level()
    expected = linear(x.double(), pack_linear(weight.double(), impl="torch"))
    for level in LEVELS[: LEVELS.index(before) + 1]:
        _C.set_level(level)
        try:
            got = linear(x, packed, out_dtype=torch.float32)
        finally:
            _C.set_level(before)
        assert torch.allclose(got.double(), expected, atol=1e-4)


@pytest.mark.parametrize("impl", COMPILED)
def test_the_number_of_threads_does_not_matter(impl: str) -> None:
    x, weight, bias = inputs(300, 100, 500, torch.bfloat16)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            results.append(linear(x, pack_linear(weight, bias, impl=impl)))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", COMPILED)
def test_outputs_are_written_everywhere(
    impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(float("nan")))
    for k, n in ((5, 7), (33, 49)):
        x, weight, bias = inputs(9, k, n, dtype)
        assert not linear(x, pack_linear(weight, bias, impl=impl)).isnan().any()


@pytest.mark.parametrize("impl", IMPLS)
def test_update_takes_the_new_values(impl: str) -> None:
    x, weight, bias = inputs(5, 20, 30, torch.float32)
    packed = pack_linear(weight, bias, impl=impl)
    weight.mul_(-2)
    bias.add_(1)
    packed.update(weight, bias)
    assert torch.equal(linear(x, packed), linear(x, pack_linear(weight, bias, impl=impl)))


def test_torch_refers_to_the_weight_itself() -> None:
    x, weight, _ = inputs(2, 3, 4, torch.float32)
    packed = pack_linear(torch.nn.Parameter(weight), impl="torch")
    before = linear(x, packed)
    weight.mul_(2)
    assert torch.equal(linear(x, packed), 2 * before)
    assert not linear(x, packed).requires_grad


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_input_is_read_rightly(impl: str) -> None:
    x, weight, bias = inputs(9, 64, 40, torch.float32)
    expected = linear(x[:, ::2].contiguous(), pack_linear(weight[:, ::2].contiguous(), impl=impl))
    strided = linear(x[:, ::2], pack_linear(weight[:, ::2], impl=impl))
    # torch's product sums in another order where strides are other ones; ours does not.
    assert torch.equal(strided, expected) or impl == "torch"
    torch.testing.assert_close(strided, expected)
    wide = torch.stack([bias, bias], 1)[:, 0]
    shifted = linear(x, pack_linear(weight, wide, impl=impl))
    assert torch.equal(shifted, linear(x, pack_linear(weight, bias, impl=impl)))


def test_bad_input_names_the_argument() -> None:
    x, weight, bias = inputs(2, 4, 3, torch.float32)
    packed = pack_linear(weight)
    for arguments, message in (
        ((weight[0],), r"weight is torch.float32 \[4\]"),
        ((weight.int(),), "weight is torch.int32"),
        ((weight[:0],), "N > 0"),
        ((weight, bias[:2]), r"bias is torch.float32 \[2\]"),
        ((weight, bias.bfloat16()), "bias is torch.bfloat16"),
    ):
        with pytest.raises(UserError, match=message):
            pack_linear(*arguments)
    with pytest.raises(UserError, match=r"x is torch.float32 \[2, 3\].*needed: torch.float32 \[T, 4\]"):
        linear(x[:, :3], packed)
    with pytest.raises(UserError, match=r"x is torch\.bfloat16"):
        linear(x.bfloat16(), packed)
    with pytest.raises(UserError, match=r"out_dtype is torch\.float16"):
        linear(x, packed, out_dtype=torch.float16)
    with pytest.raises(
        UserError, match=r"weight is torch.float32 \[2, 4\].*bias absent; needed, as when packed"
    ):
        packed.update(weight[:2])
    with pytest.raises(UserError, match="bias given; needed, as when packed"):
        packed.update(weight, bias)
    with pytest.raises(UserError, match="impl is 'torch' and the weight was packed for 'cpp'"):
        linear(x, pack_linear(weight, impl="cpp"), impl="torch")
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'linear'.*float64"):
        pack_linear(weight.double(), impl="cpp")
