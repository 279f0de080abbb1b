"""Every implementation against float64, at every instruction-set level, and against transformers' own rotation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.rope import rope_cache

IMPLS = [row.impl for row in availability("rope_cache") if row.available]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    positions: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor

    def copy(self, dtype: torch.dtype | None = None) -> Case:
        cast = dtype or self.q.dtype
        parts = {n: getattr(self, n).to(cast, copy=True) for n in ("q", "k", "v", "k_cache", "v_cache")}
        return Case(**{**vars(self), **parts})

    def run(self, impl: str) -> Tensor:
        return rope_cache(**vars(self), impl=impl)


def case(
    rows: int,
    q_heads: int,
    kv_heads: int,
    half: int,
    dtype: torch.dtype,
    seed: int,
    page: int = 4,
    scale: float = 1,
) -> Case:
    """q, k and v are views into one matrix; a third of the rows writes nothing; free slots hold NaN."""
    g = torch.Generator().manual_seed(seed)
    width = 2 * half
    fused = torch.randn(rows, (q_heads + 2 * kv_heads) * width, generator=g).mul_(scale).to(dtype)
    sizes = [heads * width for heads in (q_heads, kv_heads, kv_heads)]
    q, k, v = (part.unflatten(1, (-1, width)) for part in fused.split(sizes, 1))
    angles = torch.arange(50)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    pages = rows // page + 2
    slots = torch.randperm(pages * page, generator=g)[:rows]
    slots[::3] = -1
    positions = torch.randint(0, 50, (rows,), generator=g)
    caches = [torch.full((pages, kv_heads, page, width), float("nan"), dtype=dtype) for _ in range(2)]
    return Case(q, k, v, angles.cos(), angles.sin(), positions, *caches, slots)


def error(got: Tensor, exact: Tensor) -> float:
    assert torch.equal(got.isnan(), exact.isnan())
    return float((got.double() - exact).nan_to_num().abs().max()) if got.numel() else 0.0


def check(impl: str, given_case: Case) -> None:
    exact, usual, got = given_case.copy(torch.float64), given_case.copy(), given_case.copy()
    got.q, got.k, got.v = given_case.q, given_case.k, given_case.v  # the views, not their copies
    exact_q, usual_q, got_q = exact.run("torch"), usual.run("torch"), got.run(impl)
    assert got_q.dtype == given_case.q.dtype
    for g, u, e in ((got_q, usual_q, exact_q), (got.k_cache, usual.k_cache, exact.k_cache)):
        floor = torch.finfo(g.dtype).eps * float(e.nan_to_num().abs().max()) if e.numel() else 0.0
        assert error(g, e) <= MARGIN * max(error(u, e), floor)
    assert torch.equal(got.v_cache.nan_to_num(7), usual.v_cache.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@given(
    rows=st.integers(0, 40), heads=st.sampled_from([(1, 1), (9, 3), (4, 4)]), half=st.integers(1, 50),
    page=st.sampled_from([1, 4, 16]), scale=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str,
    dtype: torch.dtype,
    rows: int,
    heads: tuple[int, int],
    half: int,
    page: int,
    scale: float,
    seed: int,
) -> None:
    check(impl, case(rows, *heads, half, dtype, seed, page, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for half in (1, 15, 16, 32, 37, 64):
        check("cpp", case(67, 9, 3, half, dtype, half))


@pytest.mark.parametrize("impl", IMPLS)
def test_bf16_equals_transformers_to_the_bit(impl: str) -> None:
    c = case(64, 9, 3, 32, torch.bfloat16, 1, page=16)
    c.slots = torch.arange(64)
    tables = (torch.cat([t, t], 1)[c.positions].bfloat16() for t in (c.cos, c.sin))
    q, k = apply_rotary_pos_emb(c.q, c.k, *tables)
    assert torch.equal(c.run(impl), q)
    assert torch.equal(c.k_cache[:4].transpose(1, 2).flatten(0, 1), k)
    assert torch.equal(c.v_cache[:4].transpose(1, 2).flatten(0, 1), c.v)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_the_named_slots_are_written(impl: str) -> None:
    c = case(10, 2, 1, 8, torch.float32, 2, page=3)
    c.run(impl)
    written = {(s // 3, s % 3) for s in c.slots.tolist() if s >= 0}
    for cache in (c.k_cache, c.v_cache):
        for page in range(len(cache)):
            for place in range(3):
                assert cache[page, :, place].isnan().all() == ((page, place) not in written)


def test_output_is_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert not case(7, 3, 1, 9, torch.float32, 3).run("cpp").isnan().any()


@pytest.mark.parametrize("impl", IMPLS)
def test_heads_that_lie_apart_are_read_rightly(impl: str) -> None:
    c = case(6, 4, 2, 8, torch.float32, 4)
    expected = c.copy().run(impl)
    c.q = c.q.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(c.run(impl), expected)


def bad(name: str, value: object) -> dict[str, object]:
    return {**vars(case(5, 2, 1, 4, torch.float32, 0)), name: value}


def test_bad_input_names_the_argument() -> None:
    good = case(5, 2, 1, 4, torch.float32, 0)
    pages = good.k_cache.shape[0]
    for name, value, message in (
        ("q", good.q[0], r"q is torch.float32 \[2, 8\]"),
        ("q", good.q[..., :7], "Dh > 0 even"),
        ("k", good.k[:4], r"k is .*needed: torch.float32 \[5, 1, 8\]"),
        ("v", good.v.bfloat16(), "v is torch.bfloat16"),
        ("cos", good.cos.double(), "cos is torch.float64"),
        ("sin", good.sin[:3], "sin is"),
        ("sin", good.sin.T.contiguous().T, "sin has strides"),
        ("positions", good.positions.int(), "positions is torch.int32"),
        ("positions", good.positions + 50, "positions hold"),
        ("positions", -1 - good.positions, "positions hold -"),
        ("k_cache", good.k_cache[0], "k_cache has shape"),
        ("v_cache", good.v_cache[1:], "v_cache is"),
        ("v_cache", good.v_cache.transpose(0, 3).contiguous().transpose(0, 3), "v_cache has strides"),
        ("slots", good.slots[1:], "slots is"),
        ("slots", torch.full((5,), pages * 4), rf"slots hold {pages * 4}; needed: numbers in \[-1, {pages * 4}\)"),
        ("slots", torch.full((5,), -2), "slots hold -2"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            rope_cache(**bad(name, value))  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", IMPLS)
def test_unchecked_indices_give_the_same(impl: str) -> None:
    c = case(9, 2, 1, 4, torch.bfloat16, 5)
    again = c.copy()
    assert torch.equal(c.run(impl), rope_cache(**vars(again), check_indices=False, impl=impl))
    assert torch.equal(c.k_cache.nan_to_num(7), again.k_cache.nan_to_num(7))
