"""The numbers that tell whether weights were written to: every implementation against plain integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.fingerprint import FACTOR, fingerprints

IMPLS = [row.impl for row in availability("fingerprints") if row.available]
TYPES = (torch.int8, torch.bfloat16, torch.float32, torch.float64)


def fingerprint(x: Tensor, *, impl: str | None = None) -> int:
    (number,) = fingerprints([x], impl=impl)
    return number


def exact(x: Tensor) -> int:
    flat = x.contiguous().view(-1)
    even = len(flat) * flat.element_size() % 4 == 0
    words = torch.int32 if even else {1: torch.int8, 2: torch.int16}[x.element_size()]
    numbers = flat.view(words).tolist()
    return sum(word * ((i * FACTOR) % 2**64 | 1) for i, word in enumerate(numbers)) % 2**64


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 300), dtype=st.sampled_from(TYPES), seed=st.integers(0, 99))
def test_all_implementations_give_the_number_of_the_formula(
    impl: str, size: int, dtype: torch.dtype, seed: int
) -> None:
    x = (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 50).to(dtype)
    assert fingerprint(x, impl=impl) == exact(x)


def test_every_level_and_any_split_into_chunks_give_the_same(level: str) -> None:
    assert _C.level() == level
    x = torch.randn(1_300_001, generator=torch.Generator().manual_seed(0))
    for dtype in TYPES:
        wide = (x * 50).to(dtype)
        assert fingerprint(wide, impl="cpp") == fingerprint(wide, impl="torch")


@pytest.mark.parametrize("impl", IMPLS)
def test_each_tensor_has_its_own_number_whatever_stands_beside_it(impl: str) -> None:
    many = [
        (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 50).to(dtype)
        for size in (1, 0, 400_003, 7, 131_072, 0, 262_150, 30)
        for dtype in TYPES
    ]
    assert fingerprints(many, impl=impl) == [fingerprint(x, impl=impl) for x in many]
    assert fingerprints([], impl=impl) == []


@pytest.mark.parametrize("impl", IMPLS)
def test_small_changes_are_seen(impl: str) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    seen = {fingerprint(x, impl=impl)}
    for place in range(0, 1000, 37):
        other = x.clone()
        other.view(torch.int16)[place] ^= 1
        seen.add(fingerprint(other, impl=impl))
    swapped = x.clone()
    swapped[:2] = x[:2].flip(0)
    seen |= {fingerprint(swapped, impl=impl), fingerprint(x[:-1], impl=impl), fingerprint(-x, impl=impl)}
    assert len(seen) == 1 + 28 + 3


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", TYPES[1:])
def test_changes_of_a_whole_column_are_seen(impl: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    seen = {fingerprint(x, impl=impl)}
    for columns in ([0], [1], [2], [3], [0, 1], [2, 3], [1, 3], [0, 1, 2, 3]):
        for factor in (-1, 2, 0.5):
            other = x.clone()
            other[:, columns] *= factor
            seen.add(fingerprint(other, impl=impl))
    assert len(seen) == 1 + 8 * 3


def test_a_part_that_begins_amid_a_word_is_read_by_the_element() -> None:
    x = torch.randn(9).bfloat16()
    part = x[1:]
    assert (
        fingerprint(part)
        == sum(word * ((i * FACTOR) % 2**64 | 1) for i, word in enumerate(part.view(torch.int16).tolist()))
        % 2**64
    )


def test_layout_does_not_matter_and_nothing_is_zero() -> None:
    x = torch.randn(30, 20)
    assert fingerprint(x.t()) == exact(x.t())
    assert fingerprint(x[::2]) == exact(x[::2])
    assert fingerprint(x[:0]) == 0
    with pytest.raises(UserError, match="complex64"):
        fingerprint(torch.zeros(3, dtype=torch.complex64))
