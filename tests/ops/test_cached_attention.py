"""Every implementation against float64 over random caches, and the tables' checks against fuzzed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.ops.attention import CacheRows, cached_attention, cached_attention_torch
from sftrl_fast.ops.dispatch import availability

IMPLS = [row.impl for row in availability("cached_attention") if row.available]
TYPES = [torch.float32, torch.bfloat16]
MARGIN = 3.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""
NAN = float("nan")


@dataclass
class Sequences:
    """What a test asks for: prefix lengths, and (prefix, own tokens, queries) of each sequence."""

    prefixes: Sequence[int]
    members: Sequence[tuple[int, int, int]]


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    rows: CacheRows
    scale: float
    score: float
    """About the highest score."""


def build(
    wanted: Sequences, *, page: int = 16, heads: tuple[int, int] = (6, 2), width: int = 32,
    dtype: torch.dtype = torch.float32, size: float = 1.0, seed: int = 0,
) -> Case:  # fmt: skip
    """Tokens at random places of a cache that is NaN where no token stands; unused table entries are wild."""
    g = torch.Generator().manual_seed(seed)
    prefixes, own = list(wanted.prefixes), [n for _, n, _ in wanted.members]
    counts = [-(-n // page) for n in (*prefixes, *own)]
    pages = sum(counts) + 2
    taken = iter(torch.randperm(pages, generator=g).tolist())
    k, v = (torch.full((pages, heads[1], page, width), NAN) for _ in range(2))
    tables: list[list[int]] = []
    for length, count in zip((*prefixes, *own), counts, strict=True):
        tables.append([next(taken) for _ in range(count)])
        for i in range(length):
            for cache in (k, v):
                place = cache[tables[-1][i // page], :, i % page]
                place.copy_(torch.randn(heads[1], width, generator=g) * size)
    queries = [n for _, _, n in wanted.members]

    def table(of: list[list[int]]) -> Tensor:
        widest = max(map(len, of), default=0) + 1
        return torch.tensor([[*row, *[2**31 - 1] * (widest - len(row))] for row in of]).int().view(-1, widest)

    rows = CacheRows(
        query_offsets=torch.tensor([0, *queries]).cumsum(0).int(),
        prefix_of=torch.tensor([p for p, _, _ in wanted.members]).int(),
        prefix_pages=table(tables[: len(prefixes)]),
        prefix_lengths=torch.tensor(prefixes).int(),
        own_pages=table(tables[len(prefixes) :]),
        own_lengths=torch.tensor(own).int(),
    )
    rows.check(sum(queries), pages, page)
    q = torch.randn(sum(queries), heads[0], width, generator=g) * size
    return Case(q.to(dtype), k.to(dtype), v.to(dtype), rows, width**-0.5, 4 * size * size)


def error(got: Tensor, exact: Tensor) -> float:
    assert not got.isnan().any()
    return float((got.double() - exact).abs().max()) if got.numel() else 0.0


def run(case: Case, impl: str) -> Tensor:
    return cached_attention(case.q, case.k, case.v, case.rows, scale=case.scale, impl=impl)


def check(impl: str, case: Case) -> None:
    arguments = (case.q, case.k, case.v)
    exact = cached_attention_torch(*(part.double() for part in arguments), case.rows, case.scale)
    usual = cached_attention_torch(*arguments, case.rows, case.scale)
    got = run(case, impl)
    assert got.dtype == case.q.dtype
    # A unit in the last place of the result, and one of a score, which is as much of a weight's as the score is large.
    last = torch.finfo(case.q.dtype).eps + torch.finfo(torch.float32).eps * case.score
    floor = last * float(exact.abs().max() if exact.numel() else 0)
    assert error(got, exact) <= MARGIN * max(error(usual, exact), floor)


def members(most_own: int, most_queries: int, groups: int) -> st.SearchStrategy[tuple[int, int, int]]:
    def cut(drawn: tuple[int, int, int]) -> tuple[int, int, int]:
        return drawn[0], drawn[1], min(drawn[1], drawn[2])

    return st.tuples(st.integers(0, groups - 1), st.integers(1, most_own), st.integers(1, most_queries)).map(
        cut
    )


@st.composite
def wanted(draw: st.DrawFn) -> Sequences:
    prefixes = draw(st.lists(st.sampled_from([0, 1, 5, 16, 47, 300]), min_size=1, max_size=3))
    queries = draw(st.sampled_from([1, 3, 60]))
    return Sequences(prefixes, sorted(draw(st.lists(members(90, queries, len(prefixes)), max_size=6))))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
@given(
    wanted=wanted(), page=st.sampled_from([1, 4, 16, 64]), ratio=st.sampled_from([1, 3, 8]),
    kv_heads=st.integers(1, 3), width=st.sampled_from([8, 24, 32, 40, 64, 72, 96, 128, 256]),
    size=st.sampled_from([1e-6, 1.0, 30.0]), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, wanted: Sequences, page: int, ratio: int, kv_heads: int, width: int,
    size: float, seed: int,
) -> None:  # fmt: skip
    heads = (ratio * kv_heads, kv_heads)
    check(impl, build(wanted, page=page, heads=heads, width=width, dtype=dtype, size=size, seed=seed))


MIXED = Sequences([0, 130, 33], [(0, 40, 40), (0, 1, 1), (1, 64, 1), (1, 17, 1), (1, 9, 4), (2, 140, 70)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for heads, width, page in (((9, 3), 64, 16), ((1, 1), 8, 1), ((8, 1), 40, 64), ((4, 4), 17, 4)):
        check("cpp", build(MIXED, page=page, heads=heads, width=width, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_long_contexts_and_more_heads_than_a_task_takes(dtype: torch.dtype) -> None:
    check("cpp", build(Sequences([0], [(0, 9000, 1)]), heads=(3, 1), dtype=dtype))
    check("cpp", build(Sequences([4500], [(0, 3, 2)]), heads=(2, 2), dtype=dtype))
    check("cpp", build(Sequences([20], [(0, 30, 5)]), heads=(250, 2), dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_scores_far_apart_and_far_from_zero(impl: str, dtype: torch.dtype) -> None:
    # Weights are 0 or 1 here: an error in a score of 1e8 would choose another token.
    case = build(MIXED, dtype=dtype, size=1e4)
    arguments = [part.double() for part in (case.q, case.k, case.v)]
    exact = cached_attention_torch(*arguments, case.rows, case.scale)
    wrong = (run(case, impl).double() - exact).abs().amax(2) > torch.finfo(dtype).eps * 1e5
    assert wrong.float().mean() < 0.02


@pytest.mark.parametrize("impl", IMPLS)
def test_an_infinite_score_leaves_the_others_weightless(impl: str) -> None:
    case = build(Sequences([300], [(0, 5, 1)]))
    case.q[:], case.k[case.rows.prefix_pages[0, :19].long()] = 1e30, -1e30  # all of the prefix: -inf
    own = cached_attention(
        case.q,
        case.k,
        case.v,
        replace(case.rows, prefix_lengths=torch.zeros(1).int()),
        scale=case.scale,
        impl=impl,
    )
    assert not own.isnan().any()
    assert torch.equal(run(case, impl), own)


@pytest.mark.parametrize("impl", IMPLS)
def test_outputs_are_written_everywhere(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, NAN))
    for dtype in TYPES:
        assert not run(build(MIXED, width=40, dtype=dtype), impl).isnan().any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_and_strided_queries(impl: str) -> None:
    empty = build(Sequences([7], []))
    assert run(empty, impl).shape == (0, 6, 32)
    case = build(MIXED)
    wide = torch.stack([case.q, case.q + 1], dim=3).flatten(2)
    got = cached_attention(wide[:, :, ::2], case.k, case.v, case.rows, scale=case.scale, impl=impl)
    assert torch.equal(got, run(case, impl))


def take(case: Case, chosen: Sequence[int]) -> tuple[Case, Tensor]:
    """The batch of the chosen sequences alone, and which queries theirs were."""
    offsets = case.rows.query_offsets.tolist()
    queries = torch.cat([torch.arange(offsets[s], offsets[s + 1]) for s in chosen])
    groups = sorted({int(case.rows.prefix_of[s]) for s in chosen})
    rows = CacheRows(
        query_offsets=torch.tensor([0, *(offsets[s + 1] - offsets[s] for s in chosen)]).cumsum(0).int(),
        prefix_of=torch.tensor([groups.index(int(case.rows.prefix_of[s])) for s in chosen]).int(),
        prefix_pages=case.rows.prefix_pages[groups].contiguous(),
        prefix_lengths=case.rows.prefix_lengths[groups].contiguous(),
        own_pages=case.rows.own_pages[list(chosen)].contiguous(),
        own_lengths=case.rows.own_lengths[list(chosen)].contiguous(),
    )
    return replace(case, q=case.q[queries], rows=rows), queries


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("level")
def test_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    group = [(0, 64 - 5 * i, 1 + (i == 3)) for i in range(8)]
    alone = [(1, 1000, 1), (1, 200, 130), (1, 3, 3)]
    for heads in ((9, 3), (8, 1)):
        case = build(Sequences([330, 0], [*group, *alone]), heads=heads, dtype=dtype)
        everyone = run(case, "cpp")
        for chosen in ([0], [3], [7], [8], [9], [10], [2, 5, 10]):
            some, queries = take(case, chosen)
            assert torch.equal(run(some, "cpp"), everyone[queries])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("level")
def test_a_query_that_is_no_number_stays_alone(dtype: torch.dtype) -> None:
    case = build(Sequences([40], [(0, 9 + i, 1) for i in range(8)]), heads=(9, 3), width=64, dtype=dtype)
    before, q = run(case, "cpp"), case.q.clone()
    q[3] = NAN
    after = run(replace(case, q=q), "cpp")
    assert after[3].isnan().all()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(after[others], before[others])
    assert torch.equal(run(case, "cpp"), before)  # nothing of it is left in a thread's memory


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("dtype", TYPES)
def test_tokens_behind_a_row_change_no_bit(dtype: torch.dtype, width: int) -> None:
    """A context that is encoded at once, as in training, and the same one a token at a time."""
    length = 4500
    case = build(Sequences([0], [(0, length, length)]), heads=(1, 1), width=width, dtype=dtype)
    whole = run(case, "cpp")
    for seen in (1, 255, 4096, 4097, 4400):
        rows = replace(
            case.rows, query_offsets=torch.tensor([0, 1]).int(), own_lengths=torch.tensor([seen]).int()
        )
        assert torch.equal(
            run(replace(case, q=case.q[seen - 1 : seen], rows=rows), "cpp")[0], whole[seen - 1]
        )


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    try:
        for wanted in (MIXED, Sequences([2000], [(0, 700, 1)])):
            case = build(wanted, heads=(3, 1), dtype=torch.bfloat16)
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert _C.max_threads() == threads
                results.append(run(case, "cpp"))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_check_accepts_is_within_the_cache(data: st.DataObject) -> None:
    page, pages = data.draw(st.sampled_from([1, 3, 16])), 4
    wild = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 4, 17, 2**31 - 1])
    groups, sequences, a, b = (data.draw(st.integers(0, most)) for most in (2, 3, 2, 2))

    def table(*shape: int, usual: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        entry = st.one_of(st.just(usual), st.just(usual), st.just(usual), wild)
        return torch.tensor(data.draw(st.lists(entry, min_size=count, max_size=count))).int().view(shape)

    offsets = torch.arange(sequences + 1).int()
    if data.draw(st.booleans()):
        offsets = table(sequences + 1, usual=1)
    rows = CacheRows(
        offsets, table(sequences, usual=0), table(groups, a, usual=3), table(groups, usual=1),
        table(sequences, b, usual=3), table(sequences, usual=1),
    )  # fmt: skip
    try:
        rows.check(sequences, pages, page)
    except UserError:
        return
    places = torch.full((pages, 1, page, 8), 1.0)  # every slot may be read, and nothing else
    q = torch.ones(sequences, 1, 8)
    for impl in IMPLS:
        got = cached_attention(q, places, places, rows, scale=1.0, impl=impl)
        assert torch.allclose(got, torch.ones_like(q))


def faulty(name: str, value: object) -> CacheRows:
    return replace(build(MIXED).rows, **{name: value})


BAD_TABLES = [
    ("query_offsets", torch.arange(7), r"rows.query_offsets is torch.int64 \[7\]"),
    ("query_offsets", torch.arange(6).int(), r"rows.query_offsets is torch.int32 \[6\].*\[7\]"),
    ("query_offsets", torch.arange(7).int(), "rows.query_offsets: needed: rising from 0 to T = 117"),
    ("query_offsets", torch.tensor([0, 40, 40, 42, 43, 47, 117]).int(), "rows.query_offsets: .*rising"),
    ("query_offsets", torch.tensor([0, 2**31 - 1, -(2**31), -2, -1, 1, 117]).int(), "rows.query_offsets: "),
    ("prefix_of", torch.tensor([0, 0, 2, 1, 1, 2]).int(), r"rows.prefix_of: .*ascending, in \[0, 3\)"),
    ("prefix_of", torch.tensor([0, 2**31 - 1, -(2**31), -1, 0, 2]).int(), "rows.prefix_of: "),
    ("prefix_of", torch.tensor([0, 0, 1, 1, 1, 3]).int(), "rows.prefix_of: "),
    ("prefix_of", torch.tensor([-1, 0, 1, 1, 1, 2]).int(), "rows.prefix_of: "),
    ("prefix_lengths", torch.tensor([0, 130, -1]).int(), "rows.prefix_lengths: needed: 0 to 10 pages of 16"),
    ("prefix_lengths", torch.tensor([0, 130, 161]).int(), "rows.prefix_lengths: "),
    ("prefix_lengths", torch.tensor(3).int(), r"rows.prefix_lengths is torch.int32 \[\]"),
    ("prefix_pages", torch.zeros(3).int(), r"rows.prefix_pages is torch.int32 \[3\]; .* \[3, any\]"),
    ("prefix_pages", torch.full((3, 10), -1).int(), r"rows.prefix_pages: needed: pages in \[0, "),
    ("prefix_pages", torch.zeros(10, 3).int().T, "rows.prefix_pages .*contiguous"),
    ("own_pages", torch.full((6, 10), 10**6).int(), r"rows.own_pages: needed: pages in \[0, "),
    ("own_pages", torch.zeros(6, 10, 1).int(), r"rows.own_pages is torch.int32 \[6, 10, 1\]"),
    ("own_lengths", torch.tensor([40, 1, 64, 17, 3, 140]).int(), "rows.own_lengths: needed: at least"),
    ("own_lengths", torch.tensor([40, 1, 64, 17, 9, 2**31 - 1]).int(), "rows.own_lengths: needed: 0 to"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_TABLES)
def test_bad_tables_are_named(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        faulty(name, value).check(117, len(build(MIXED).k), 16)


def test_bad_tensors_are_named() -> None:
    case = build(MIXED)
    q, k, v, rows = case.q, case.k, case.v, case.rows
    with pytest.raises(UserError, match=r"q, k_cache, v_cache have shapes \[117, 6\]"):
        cached_attention(q[:, :, 0], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="q, k_cache, v_cache have shapes"):
        cached_attention(q, k, v[:-1], rows, scale=1.0)
    with pytest.raises(UserError, match="q, k_cache: Hq 5, Hkv 2"):
        cached_attention(q[:, :5], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="Dh 16 and 32"):
        cached_attention(q[:, :, :16], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="one type and one device"):
        cached_attention(q.bfloat16(), k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="k_cache, v_cache: needed: contiguous"):
        cached_attention(q, k.transpose(2, 3).contiguous().transpose(2, 3), v, rows, scale=1.0)
    with pytest.raises(UserError, match=r"rows.own_pages is on meta; needed: on cpu"):
        cached_attention(q, k, v, replace(rows, own_pages=rows.own_pages.to("meta")), scale=1.0)
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'cached_attention'.*float64"):
        cached_attention(q.double(), k.double(), v.double(), rows, scale=1.0, impl="cpp")
