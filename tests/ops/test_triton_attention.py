"""The attention kernels: interpreted in float32, and on CUDA in every type."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.ops.attention import CacheRows, PackedRows, cached_attention, packed_attention
from sftrl_fast.ops.dispatch import interpreting

pytest.importorskip("triton", reason="the package triton is not installed")

MARGIN = 2.0
"""Error against float64 allowed over that of plain torch in the same type: sums run in another order."""
NAN = float("nan")

SIDES = [
    pytest.param("cpu", torch.float32, id="interpreted-fp32"),
    *(
        pytest.param("cuda", dtype, id=f"cuda-{name}", marks=pytest.mark.gpu)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
    ),
]
SHAPES = [(2, 2, 16), (3, 1, 64), (6, 2, 80)]
"""Query heads, key heads, numbers of a head."""


@pytest.fixture(autouse=True)
def _poisoned_buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write must show; and the test runs where its device is."""
    arguments = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    device = arguments.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and not interpreting():
        pytest.skip("there is a CUDA device: kernels are compiled, not interpreted")
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        buffer: Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return buffer.fill_(NAN) if buffer.is_floating_point() else buffer

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 tokens, so that small contexts have several."""
    monkeypatch.setattr(importlib.import_module("sftrl_fast.kernels.cached_attention"), "CHUNK", 32)


def bounded(got: Tensor, usual: Tensor, true: Tensor) -> None:
    assert got.dtype == usual.dtype
    assert not got.isnan().any()
    if got.numel():
        floor = torch.finfo(got.dtype).eps * true.abs().max()
        assert (got.double() - true).abs().max() <= MARGIN * max((usual.double() - true).abs().max(), floor)


class Cached:
    """Random tokens at random places of a cache that is NaN elsewhere; ``members``: prefix, own tokens, queries."""

    def __init__(
        self, prefixes: Sequence[int], members: Sequence[tuple[int, int, int]], page: int,
        shape: tuple[int, int, int], device: str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(len(members) + page)
        heads, kv_heads, width = shape
        lengths = [*prefixes, *(own for _, own, _ in members)]
        counts = [-(-length // page) for length in lengths]
        order = torch.randperm(sum(counts), generator=g).split(counts)
        table = torch.full((len(lengths), max(counts) + 1), 2**31 - 1)
        self.caches = [torch.full((sum(counts), kv_heads, page, width), NAN) for _ in range(2)]
        for i, (length, pages) in enumerate(zip(lengths, order, strict=True)):
            table[i, : len(pages)] = pages
            for at in range(length):
                for cache in self.caches:
                    cache[pages[at // page], :, at % page] = torch.randn(kv_heads, width, generator=g)
        queries = torch.tensor([0, *(n for _, _, n in members)])
        tables = (
            queries.cumsum(0), torch.tensor([p for p, _, _ in members]), table[: len(prefixes)],
            torch.tensor(prefixes), table[len(prefixes) :], torch.tensor([own for _, own, _ in members]),
        )  # fmt: skip
        self.rows = CacheRows(*(t.int().to(device) for t in tables))
        self.rows.check(int(queries.sum()), len(self.caches[0]), page)
        self.q = torch.randn(int(queries.sum()), heads, width, generator=g).to(device, dtype)
        self.caches = [cache.to(device, dtype) for cache in self.caches]

    def run(self, impl: str, dtype: torch.dtype | None = None, rows: CacheRows | None = None) -> Tensor:
        q, k, v = (t.to(dtype or t.dtype) for t in (self.q, *self.caches))
        return cached_attention(q, k, v, rows or self.rows, scale=q.shape[2] ** -0.5, impl=impl)

    def check(self) -> Tensor:
        got = self.run("triton")
        bounded(got, self.run("torch"), self.run("torch", torch.float64))
        return got


DECODE = ([0, 70, 0, 33], [(0, 1, 1), (1, 40, 1), (1, 5, 1), (1, 64, 1), (3, 97, 1)])
MIXED = ([0, 41], [(0, 37, 37), (1, 1, 1), (1, 50, 9), (1, 33, 2)])


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize(("device", "dtype"), SIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("wanted", "page"), [(DECODE, 16), (MIXED, 4)], ids=["decode", "mixed"])
def test_cached_error_is_the_references(
    wanted: tuple[list[int], list[tuple[int, int, int]]], page: int, shape: tuple[int, int, int],
    device: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    Cached(*wanted, page, shape, device, dtype).check()


@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_several_queries_a_sequence_in_whole_chunks(device: str, dtype: torch.dtype) -> None:
    """With the shipped chunks: a context longer than one, of which the first queries do not see the last."""
    Cached([300], [(0, 258, 4), (0, 1, 1)], 32, (3, 1, 16), device, dtype).check()


@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_more_query_heads_than_a_tile_has_rows(device: str, dtype: torch.dtype) -> None:
    Cached([5], [(0, 9, 1), (0, 3, 1)], 16, (40, 1, 16), device, dtype).check()


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_neighbours_change_no_bit(device: str, dtype: torch.dtype) -> None:
    case = Cached(*DECODE, 16, (3, 1, 16), device, dtype)
    everyone = case.run("triton")
    for s, group in ((1, 1), (4, 3)):
        alone = replace(
            case.rows, query_offsets=case.rows.query_offsets[:2], prefix_of=case.rows.prefix_of[:1],
            prefix_pages=case.rows.prefix_pages[group : group + 1],
            prefix_lengths=case.rows.prefix_lengths[group : group + 1],
            own_pages=case.rows.own_pages[s : s + 1], own_lengths=case.rows.own_lengths[s : s + 1],
        )  # fmt: skip
        got = cached_attention(case.q[s : s + 1], *case.caches, alone, scale=16**-0.5, impl="triton")
        assert torch.equal(got, everyone[s : s + 1])


@pytest.mark.usefixtures("_short_chunks")
def test_a_prefix_without_weight_changes_no_bit() -> None:
    case = Cached([70], [(0, 5, 1)], 16, (3, 1, 16))
    case.q.fill_(1e30)
    case.caches[0][case.rows.prefix_pages[0, :5].long()] = -1e30
    alone = case.run("triton", rows=replace(case.rows, prefix_lengths=torch.zeros(1).int()))
    assert not alone.isnan().any()
    assert torch.equal(case.run("triton"), alone)


def test_tiles_are_found_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("sftrl_fast.kernels.cached_attention")
    calls, plain = [], kernels.ragged_tiles
    monkeypatch.setattr(kernels, "ragged_tiles", lambda *a: (calls.append(a), plain(*a))[1])
    case = Cached([5], [(0, 3, 1)], 16, (1, 1, 16))
    assert torch.equal(case.run("triton"), case.run("triton"))
    assert len(calls) == 2  # of the group and of the sequence
    other = replace(case.rows, own_lengths=torch.tensor([1]).int())
    case.run("triton", rows=other)
    assert len(calls) == 4
    assert all(getattr(other, f.name) is getattr(case.rows, f.name) for f in fields(other)[:5])


@given(
    lengths=st.lists(st.integers(0, 40), max_size=8), repeat=st.integers(1, 5), block=st.sampled_from([1, 16, 64])
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_tiles_take_every_row_once(lengths: list[int], repeat: int, block: int) -> None:
    tiles = importlib.import_module("sftrl_fast.kernels.attention_tiles")
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    found = tiles.ragged_tiles(offsets, sum(lengths), repeat, block).tolist()
    starts = [(s, first) for s, n in enumerate(lengths) for first in range(0, repeat * n, block)]
    assert [tile for tile in map(tuple, found) if tile[0] >= 0] == starts
    assert len(found) <= sum(lengths) * repeat // block + len(lengths)


Packed = tuple[list[int], list[int]]
GROUPS: Packed = ([40, 3, 0, 37, 21], [-1, 0, 0, 0, -1])
EMPTY_PARENT: Packed = ([0, 5, 33, 1, 18], [-1, 0, -1, 0, 2])


def packed(
    wanted: Packed, shape: tuple[int, int, int], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PackedRows, list[Tensor], Tensor]:
    """Tables, q k v as parts of one tensor, and a gradient of the output."""
    lengths, parent = wanted
    g, (heads, kv_heads, width), tokens = torch.Generator().manual_seed(len(lengths)), shape, sum(lengths)
    rows = PackedRows(
        *(t.int().to(device) for t in (torch.tensor([0, *lengths]).cumsum(0), torch.tensor(parent)))
    )
    rows.check(tokens)
    joined = torch.randn(tokens, heads + 2 * kv_heads, width, generator=g).to(device, dtype)
    grad = torch.randn(tokens, width, heads, generator=g).transpose(1, 2).to(device, dtype)
    return rows, list(joined.split([heads, kv_heads, kv_heads], 1)), grad


def gradients(impl: str, rows: PackedRows, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = packed_attention(*leaves, rows, scale=grad.shape[2] ** -0.5, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize(("device", "dtype"), SIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wanted", [GROUPS, EMPTY_PARENT], ids=["groups", "empty parent"])
def test_packed_error_is_the_references(
    wanted: Packed, shape: tuple[int, int, int], device: str, dtype: torch.dtype
) -> None:
    rows, tensors, grad = packed(wanted, shape, device, dtype)
    true = gradients("torch", rows, [t.double() for t in tensors], grad.double())
    usual, got = (gradients(impl, rows, tensors, grad) for impl in ("torch", "triton"))
    for parts in zip(got, usual, true, strict=True):
        bounded(*parts)


@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_a_family_alone_has_the_same_bits(device: str, dtype: torch.dtype) -> None:
    """And so has a second run: no sum depends on who is there or on who comes first."""
    rows, tensors, grad = packed(([21, 9, 30, 4, 17], [-1, -1, 1, 1, 0]), (3, 1, 16), device, dtype)
    everyone = gradients("triton", rows, tensors, grad)
    own = slice(21, 64)
    alone = PackedRows(*(torch.tensor(t).int().to(device) for t in ([0, 9, 39, 43], [-1, 0, 0])))
    some = gradients("triton", alone, [t[own] for t in tensors], grad[own])
    again = gradients("triton", rows, tensors, grad)
    for whole, part, second in zip(everyone, some, again, strict=True):
        assert torch.equal(whole[own], part)
        assert torch.equal(whole, second)


def test_no_tokens() -> None:
    for lengths in ([], [0, 0]):
        rows, tensors, grad = packed((lengths, [-1] * len(lengths)), (3, 1, 16))
        for result in gradients("triton", rows, tensors, grad):
            assert not len(result)
    empty = CacheRows(*(torch.zeros(n).int() for n in (1, 0)), torch.zeros(0, 1).int(), torch.zeros(0).int(),
                      torch.zeros(0, 1).int(), torch.zeros(0).int())  # fmt: skip
    q, cache = torch.zeros(0, 3, 16), torch.zeros(1, 1, 4, 16)
    assert not len(cached_attention(q, cache, cache, empty, scale=1.0, impl="triton"))
