"""What is asked of the FlashAttention packages: by their signatures, and by torch stand-ins that have them.

``golden/flash_signatures.json`` holds the arguments and defaults as they stand in the packages' own sources.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.attention import (
    CacheRows,
    PackedRows,
    cached_attention_torch,
    packed_attention_torch,
)
from sftrl_fast.ops.flash import cached_attention as cached_module
from sftrl_fast.ops.flash import calls, packages
from sftrl_fast.ops.flash import packed_attention as packed_module

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flash_signatures.json").read_text())
SIGNATURES = {function: arguments for entry in GOLDEN.values() for function, arguments in entry.items()}
TYPES = [torch.bfloat16, torch.float16]
MARGIN = 3.0
"""Error against float64 allowed over that of plain torch: two results in the type are added, and rounded again."""
NAN = float("nan")
Lengths = Sequence[int]


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, empty: float
) -> tuple[Tensor, Tensor]:
    """``q [n, Hq, Dh]`` over ``k, v [m, Hkv, Dh]``: float32 output, and ``lse [Hq, n]``, ``empty`` without a key."""
    weights, lse, _ = softmax(q, k, scale, causal, None)
    repeat = q.shape[1] // k.shape[1]
    out = torch.einsum("hnm,mhd->nhd", weights.nan_to_num(), v.float().repeat_interleave(repeat, 1))
    return out, torch.where(lse == float("-inf"), empty, lse)


def softmax(
    q: Tensor, k: Tensor, scale: float, causal: bool, lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``[Hq, n, m]`` by ``lse`` (by their own if None), that, and the keys of each query head."""
    keys = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", q.float(), keys) * scale
    if causal:  # aligned to the last query and the last key
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(2) if lse is None else lse
    return (scores - lse.unsqueeze(2)).exp(), lse, keys


def ranges(offsets: Tensor, total: int, longest: int) -> list[slice]:
    assert offsets.dtype == torch.int32
    assert offsets.is_contiguous()
    bounds = offsets.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == total
    assert longest == max(b - a for a, b in pairwise(bounds))
    return [slice(a, b) for a, b in pairwise(bounds)]


def forward(empty: float) -> Callable[..., Any]:
    """The varlen function of FlashAttention-2 or -4, without and with pages, and -3's over a cache."""

    def run(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled(), "the log-sums of FlashAttention-2 have no gradient"
        q, k, v = (given[name] for name in ("q", "k", "v"))
        assert q.dtype in TYPES
        assert k.stride(-1) == v.stride(-1) == q.stride(-1) == 1
        out, lse = torch.full(q.shape, NAN, dtype=q.dtype), torch.full((q.shape[1], len(q)), NAN)
        queries = ranges(given["cu_seqlens_q"], len(q), given["max_seqlen_q"])
        table = given.get("page_table")
        if table is None:
            keys = ranges(given["cu_seqlens_k"], len(k), given["max_seqlen_k"])
            contexts = [(k[at], v[at]) for at in keys]
        else:
            lengths = given["seqused_k"]
            assert lengths.dtype == table.dtype == torch.int32
            assert len(table) == len(lengths) == len(queries)
            contexts = [
                (k[pages.long()].flatten(0, 1)[:n], v[pages.long()].flatten(0, 1)[:n])  # reads every entry
                for pages, n in zip(table, lengths.tolist(), strict=True)
            ]
        for at, context in zip(queries, contexts, strict=True):
            out[at], lse[:, at] = attention(q[at], *context, given["softmax_scale"], given["causal"], empty)
        return out, lse

    return run


def backward(given: dict[str, Any], lse: Tensor) -> list[Tensor]:
    """As the packages compute it: from the output and the log-sums they are given, whatever their keys were."""
    q, k, v, out, dout = (given[name] for name in ("q", "k", "v", "out", "dout"))
    assert given["deterministic"]
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    results = [torch.full(x.shape, NAN, dtype=x.dtype) for x in (q, k, v)]
    queries = ranges(given["cu_seqlens_q"], len(q), given["max_seqlen_q"])
    keys = ranges(given["cu_seqlens_k"], len(k), given["max_seqlen_k"])
    for mine, theirs in zip(queries, keys, strict=True):
        scale, grad = given["softmax_scale"], dout[mine].float()
        weights, _, wide = softmax(q[mine], k[theirs], scale, given["causal"], lse[:, mine])
        values = v[theirs].float().repeat_interleave(q.shape[1] // v.shape[1], 1)
        delta = (grad * out[mine].float()).sum(2).T.unsqueeze(2)
        slope = weights * (torch.einsum("nhd,mhd->hnm", grad, values) - delta) * scale
        results[0][mine] = torch.einsum("hnm,mhd->nhd", slope, wide).to(q.dtype)
        for result, factor, by in ((results[1], slope, q[mine].float()), (results[2], weights, grad)):
            whole = torch.einsum("hnm,nhd->mhd", factor, by)
            result[theirs] = whole.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype)
    return results


def varlen_two(given: dict[str, Any]) -> Any:
    assert given["return_attn_probs"]
    return *forward(float("inf"))(given), None


def back_two(given: dict[str, Any]) -> None:
    assert given["dropout_p"] == given["softcap"] == 0
    assert given["window_size_left"] == given["window_size_right"] == -1
    for name, result in zip(("dq", "dk", "dv"), backward(given, given["softmax_lse"]), strict=True):
        given[name].copy_(result)


def cache_three(given: dict[str, Any]) -> Any:
    assert given["return_softmax_lse"]
    assert given["num_splits"] == 1
    names = {"k": "k_cache", "v": "v_cache", "seqused_k": "cache_seqlens"}
    return *forward(float("-inf"))(given | {new: given[old] for new, old in names.items()}), None


def varlen_four(given: dict[str, Any]) -> Any:
    assert given["return_lse"]
    assert given["num_splits"] == 1
    return forward(float("-inf"))(given)


def back_four(given: dict[str, Any]) -> Any:
    return tuple(backward(given, given["lse"]))


STANDINS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "flash_attn.flash_attn_interface.flash_attn_varlen_func": varlen_two,
    "flash_attn.flash_attn_interface._flash_attn_varlen_backward": back_two,
    "flash_attn_interface.flash_attn_with_kvcache": cache_three,
    "flash_attn.cute.interface.flash_attn_varlen_func": varlen_four,
    "flash_attn.cute.interface._flash_attn_bwd": back_four,
}


def standin(name: str) -> Callable[..., Any]:
    """A function that takes what the package's takes, by the same names, and nothing else."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            inspect.Parameter(argument, kind, default=ast.literal_eval(default[0]))
            if default
            else inspect.Parameter(argument, kind)
            for argument, *default in SIGNATURES[name]
        ]
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return STANDINS[name](bound.arguments)

    return call


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in the packages' places; and what a kernel does not write shows."""
    for name in STANDINS:
        module, function = name.rsplit(".", 1)
        for path in (module, module.removesuffix(".interface")) if "cute" in module else (module,):
            parts = path.split(".")
            for depth in range(1, len(parts) + 1):
                known = ".".join(parts[:depth])
                if not getattr(sys.modules.get(known), "standin", False):
                    fresh = ModuleType(known)
                    fresh.standin = True  # type: ignore[attr-defined]
                    monkeypatch.setitem(sys.modules, known, fresh)
            setattr(sys.modules[path], function, standin(name))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(NAN))


def take(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(packed_module, "packed_package", lambda: package)
    monkeypatch.setattr(cached_module, "cached_package", lambda: package)


def bounded(got: Tensor, usual: Tensor, true: Tensor, size: float = 0.0) -> None:
    """``size``: what the parts of the result are as large as, where they may cancel."""
    assert got.dtype == usual.dtype
    assert got.shape == true.shape
    assert not got.isnan().any()
    if got.numel():
        floor = torch.finfo(got.dtype).eps * true.abs().max().clamp(min=size)
        assert (got.double() - true).abs().max() <= MARGIN * max((usual.double() - true).abs().max(), floor)


def packed_rows(lengths: Lengths, parent: Lengths) -> PackedRows:
    rows = PackedRows(torch.tensor([0, *lengths]).cumsum(0).int(), torch.tensor(parent).int())
    rows.check(sum(lengths))
    return rows


def check_packed(
    lengths: Lengths,
    parent: Lengths,
    dtype: torch.dtype,
    shape: tuple[int, int, int] = (6, 2, 16),
    size: float = 1,
) -> None:
    rows, (heads, kv_heads, width), total = packed_rows(lengths, parent), shape, sum(lengths)
    g = torch.Generator().manual_seed(total)
    joined = (torch.randn(total, heads + 2 * kv_heads, width, generator=g) * size).to(dtype)
    grad = torch.randn(total, width, heads, generator=g).transpose(1, 2).to(dtype)

    def run(call: Callable[..., Tensor], wide: bool) -> list[Tensor]:
        leaves = list(joined.split([heads, kv_heads, kv_heads], 1))
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in leaves]
        out = call(*leaves, rows, width**-0.5)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    true, usual = run(packed_attention_torch, True), run(packed_attention_torch, False)
    # A score's gradient is the difference of two products with `grad`, one of them with the rounded output.
    of_score = (grad.float() * usual[0]).norm(dim=2).amax() * width**-0.5 * size if total else 0.0
    sizes = (0.0, float(of_score), float(of_score), 0.0)
    got = run(packed_module.packed_attention_flash, False)
    for parts in zip(got, usual, true, sizes, strict=True):
        bounded(*parts)


PACKED_NAMES = [package.name for package in packages.PACKED]
CACHED_NAMES = [package.name for package in packages.CACHED]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("package", PACKED_NAMES)
@pytest.mark.parametrize(
    ("lengths", "parent"),
    [
        ([20, 7, 9, 12, 30, 5], [-1, 0, 0, -1, 3, 3]), ([9, 4], [-1, -1]), ([6, 0, 5, 1, 8, 3], [-1, -1, 1, 0, -1, 0]),
        ([3, 0, 0], [-1, 0, -1]), ([1], [-1]),
    ],
    ids=["families", "nothing shared", "empty parent and a child behind strangers", "empty child", "one token"],
)  # fmt: skip
def test_packed_error_is_the_references(
    lengths: Lengths, parent: Lengths, package: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, package)
    check_packed(lengths, parent, dtype)


@pytest.mark.parametrize("package", PACKED_NAMES)
def test_packed_of_large_scores(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, package)
    check_packed([9, 5, 6], [-1, 0, 0], torch.bfloat16, size=30)


@pytest.mark.parametrize("package", PACKED_NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_of_random_rows(package: str, data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, package)
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=7))
    parent: list[int] = []
    for _ in lengths:
        heads = [i for i, p in enumerate(parent) if p == -1]
        parent.append(data.draw(st.sampled_from([-1, *heads])))
    check_packed(lengths, parent, data.draw(st.sampled_from(TYPES)), (4, 2, 8))


def test_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, "flash-attn")
    check_packed([0, 0], [-1, 0], torch.bfloat16)


def test_a_plan_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, "flash-attn")
    rows, made, plain = packed_rows([4, 2], [-1, 0]), [], packed_module._spans
    monkeypatch.setattr(packed_module, "_spans", lambda *a: (made.append(a), plain(*a))[1])
    q = torch.randn(6, 1, 8).bfloat16()
    layers = [packed_module.packed_attention_flash(q, q, q, rows, 1.0) for _ in range(2)]
    assert torch.equal(*layers)
    assert len(made) == 2  # own and shared


def check_cached(
    prefixes: Lengths, members: Sequence[tuple[int, int, int]], dtype: torch.dtype, page: int = 4,
    shape: tuple[int, int, int] = (6, 2, 16),
) -> None:  # fmt: skip
    """``members``: prefix, own tokens, queries. NaN where no token stands, wild numbers where no page is."""
    (heads, kv_heads, width), g = shape, torch.Generator().manual_seed(len(members))
    lengths = [*prefixes, *(own for _, own, _ in members)]
    counts = [-(-length // page) for length in lengths]
    table = torch.full((len(lengths), max(counts) + 1), 2**31 - 1)
    caches = [torch.full((sum(counts) + 1, kv_heads, page, width), NAN, dtype=dtype) for _ in range(2)]
    order = torch.randperm(sum(counts), generator=g).split(counts)
    for i, (length, pages) in enumerate(zip(lengths, order, strict=True)):
        table[i, : len(pages)] = pages
        for at in range(length):
            for cache in caches:
                cache[pages[at // page], :, at % page] = torch.randn(kv_heads, width, generator=g).to(dtype)
    queries = torch.tensor([0, *(n for _, _, n in members)])
    tables = (
        queries.cumsum(0), torch.tensor([p for p, _, _ in members]), table[: len(prefixes)],
        torch.tensor(prefixes), table[len(prefixes) :], torch.tensor([own for _, own, _ in members]),
    )  # fmt: skip
    rows = CacheRows(*(t.int() for t in tables))
    rows.check(int(queries.sum()), len(caches[0]), page)
    q, scale = torch.randn(int(queries.sum()), heads, width, generator=g).to(dtype), width**-0.5
    with torch.no_grad():
        got = cached_module.cached_attention_flash(q, *caches, rows, scale)
    true = cached_attention_torch(q.double(), *(cache.double() for cache in caches), rows, scale)
    bounded(got, cached_attention_torch(q, *caches, rows, scale), true)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("package", CACHED_NAMES)
@pytest.mark.parametrize(
    ("prefixes", "members"),
    [
        ([0, 7, 0, 33], [(0, 1, 1), (1, 40, 1), (1, 5, 1), (1, 6, 1), (3, 9, 1)]),
        ([0, 41], [(0, 37, 37), (1, 1, 1), (1, 20, 9), (1, 33, 2)]),
        ([5, 9], [(1, 3, 1), (1, 2, 2)]), ([0], [(0, 3, 3)]), ([12], [(0, 1, 1), (0, 8, 4)]),
    ],
    ids=["decode", "mixed", "a prefix of nobody", "no prefix", "all share"],
)  # fmt: skip
def test_cached_error_is_the_references(
    prefixes: Lengths, members: Sequence[tuple[int, int, int]], package: str, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    take(monkeypatch, package)
    check_cached(prefixes, members, dtype)


@pytest.mark.parametrize("package", CACHED_NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cached_of_random_rows(package: str, data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, package)
    prefixes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    member = st.tuples(st.integers(0, len(prefixes) - 1), st.integers(1, 15), st.integers(1, 15))
    members = [
        (p, own, min(own, n)) for p, own, n in sorted(data.draw(st.lists(member, min_size=1, max_size=6)))
    ]
    check_cached(prefixes, members, data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from([1, 4, 16])))


def test_merging_keeps_weights_of_huge_log_sums() -> None:
    out, more = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    merged, _ = calls.merge(out, torch.full((1, 1), 1e30), more, torch.full((1, 1), 1e30))
    assert torch.equal(merged, torch.full((1, 1, 8), 0.5))


def test_sizes_that_no_package_takes() -> None:
    rows, x = packed_rows([2], [-1]), torch.zeros(2, 1, 12).bfloat16()
    with pytest.raises(UserError, match="Dh 12; needed: a multiple of 8 up to 256"):
        packed_module.packed_attention_flash(x, x, x, rows, 1.0)
    cache, tables = (
        torch.zeros(1, 1, 128, 8),
        [torch.tensor(t).int() for t in ([0, 1], [0], [[0]], [0], [[0]], [1])],
    )
    with pytest.raises(UserError, match="pages of 128 tokens; needed: at most 32"):
        cached_module.cached_attention_flash(torch.zeros(1, 1, 8), cache, cache, CacheRows(*tables), 1.0)
