"""Every implementation, forward and backward, against float64 over random segments."""

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
from sftrl_fast.ops import dispatch
from sftrl_fast.ops.attention import PackedRows, packed_attention, packed_attention_torch
from sftrl_fast.ops.dispatch import availability, interpreting

IMPLS = [row.impl for row in availability("packed_attention", torch.empty(0)) if row.available]
TYPES = [torch.float32, torch.bfloat16]
MARGIN = 4.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""
NAN = float("nan")
Segments = Sequence[tuple[int, int]]
"""(tokens, parent) of each segment."""


@dataclass
class Case:
    parts: tuple[Tensor, Tensor, Tensor]
    """q, k and v."""
    grad: Tensor
    """Gradient of the result."""
    rows: PackedRows
    scale: float


def table(segments: Segments) -> PackedRows:
    offsets = torch.tensor([0, *(n for n, _ in segments)]).cumsum(0).int()
    return PackedRows(offsets, torch.tensor([parent for _, parent in segments]).int())


def build(
    segments: Segments, *, heads: tuple[int, int] = (6, 2), width: int = 32,
    dtype: torch.dtype = torch.float32, size: float = 1.0, seed: int = 0,
) -> Case:  # fmt: skip
    g, rows = torch.Generator().manual_seed(seed), table(segments)
    tokens = int(rows.offsets[-1])
    rows.check(tokens)
    q, k, v, grad = (
        torch.randn(tokens, count, width, generator=g).mul_(factor).to(dtype)
        for count, factor in zip((heads[0], heads[1], heads[1], heads[0]), (size, size, 1, 1), strict=True)
    )
    return Case((q, k, v), grad, rows, width**-0.5)


def run(case: Case, impl: str | None) -> list[Tensor]:
    """The result and the gradients of q, k and v."""
    parts = [part.detach().requires_grad_() for part in case.parts]
    out = packed_attention(*parts, case.rows, scale=case.scale, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, parts, case.grad)]


def wide(case: Case) -> Case:
    q, k, v = (part.double() for part in case.parts)
    return replace(case, parts=(q, k, v), grad=case.grad.double())


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def floors(case: Case, exact: Sequence[Tensor]) -> list[float]:
    """For the result and each gradient, one unit in the last place, and what the definition's parts round to.

    A score's unit in float32 is as much of its weight's as the score is large. A gradient of a score is the
    difference of ``grad v`` of its key and ``grad out``, where ``out`` was rounded to its type.
    """
    dtype, ratio = case.grad.dtype, case.parts[0].shape[1] // case.parts[2].shape[1]
    last, unit = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    q, k, v = (largest(part) for part in case.parts)
    grads, values = case.grad.abs().float(), case.parts[2].abs().float().repeat_interleave(ratio, dim=1)
    score = case.scale * q * k * case.parts[0].shape[2] ** 0.5
    slope = unit * (1 + score) * largest(torch.einsum("thd,shd->hts", grads, values))
    slope += last * largest((exact[0].float().abs() * grads).sum(2))
    parts = (
        unit * (1 + score) * v,
        case.scale * slope * k,
        case.scale * slope * q,
        unit * (1 + score) * largest(grads),
    )
    return [last * largest(true) + part for true, part in zip(exact, parts, strict=True)]


def check(impl: str, case: Case) -> None:
    exact, usual, got = run(wide(case), "torch"), run(case, "torch"), run(case, impl)
    for name, true, reference, value, floor in zip(
        ("out", "q", "k", "v"), exact, usual, got, floors(case, exact), strict=True
    ):
        assert value.dtype == case.grad.dtype
        assert not value.isnan().any(), name
        off, allowed = largest(value.double() - true), MARGIN * max(largest(reference.double() - true), floor)
        assert off <= allowed, f"{name}: {off / allowed:.2f} of what is allowed"


def shortened(segments: Segments, impl: str) -> Segments:
    """At most 40 tokens a segment, still over a tile, for interpreted kernels: they take a millisecond an operation."""
    if impl != "triton" or not interpreting():
        return segments
    return [(min(n, 40), parent) for n, parent in segments]


@st.composite
def segments(draw: st.DrawFn) -> Segments:
    out: list[tuple[int, int]] = []
    for length in draw(st.lists(st.sampled_from([0, 1, 2, 7, 33, 70, 140]), max_size=7)):
        roots = [i for i, (_, parent) in enumerate(out) if parent < 0]
        out.append((length, draw(st.sampled_from([-1, *roots]))))
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
@given(
    segments=segments(), ratio=st.sampled_from([1, 3, 8]), kv_heads=st.integers(1, 3),
    width=st.sampled_from([1, 8, 17, 24, 32, 64, 72, 128]), size=st.sampled_from([1e-6, 1.0, 30.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, segments: Segments, ratio: int, kv_heads: int, width: int, size: float,
    seed: int,
) -> None:  # fmt: skip
    heads = (ratio * kv_heads, kv_heads)
    segments = shortened(segments, impl)
    check(impl, build(segments, heads=heads, width=width, dtype=dtype, size=size, seed=seed))


# Two prompts, one without answers between; ragged answers, one of one token and one of none; the second prompt's
# answers stand apart; rows that share nothing.
MIXED = [(130, -1), (60, 0), (1, 0), (33, -1), (97, 0), (0, 0), (5, 3), (200, -1), (1, -1), (20, 3), (9, 0)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for heads, width in (((9, 3), 64), ((1, 1), 8), ((8, 1), 40), ((4, 4), 17)):
        check("cpp", build(MIXED, heads=heads, width=width, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_shared_prompt_is_worth_its_copies(impl: str, dtype: torch.dtype) -> None:
    segments = shortened([(130, -1), *[(60, 0)] * 8], impl)
    shared = build(segments, heads=(9, 3), width=64, dtype=dtype)
    prompt, answer = segments[0][0], segments[1][0]
    place = torch.cat(
        [torch.cat([torch.arange(prompt), torch.arange(answer) + prompt + answer * i]) for i in range(8)]
    )
    q, k, v = (part[place] for part in shared.parts)
    grad = shared.grad[place].clone()
    grad.view(8, prompt + answer, 9, 64)[1:, :prompt] = 0  # a prompt's own result counts once
    copies = run(Case((q, k, v), grad, table([(prompt + answer, -1)] * 8), shared.scale), impl)
    limit = 5 * torch.finfo(dtype).eps
    for value, copy in zip(run(shared, impl)[1:], copies[1:], strict=True):
        total = torch.zeros(value.shape).index_add_(0, place, copy.float())
        assert largest(value.float() - total) <= limit * largest(total)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_scores_far_apart_and_far_from_zero(impl: str, dtype: torch.dtype) -> None:
    # Weights are 0 or 1 here: an error in a score of 1e8 would choose another token.
    case = build(shortened(MIXED, impl), dtype=dtype, size=1e4)
    exact, (got, *grads) = run(wide(case), "torch"), run(case, impl)
    wrong = (got.double() - exact[0]).abs().amax(2) > torch.finfo(dtype).eps * 8
    assert wrong.float().mean() < 0.02
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_outputs_are_written_everywhere(
    impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, NAN))
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(*sizes, **options).fill_(NAN))
    for width in (32, 17):
        for tensor in run(build(shortened(MIXED, impl), width=width, dtype=dtype), impl):
            assert not tensor.isnan().any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_and_strided_tensors(impl: str) -> None:
    for nothing in ([], [(0, -1), (0, 0)]):
        case = build(nothing)
        assert [part.shape for part in run(case, impl)] == [(0, n, 32) for n in (6, 6, 2, 2)]
    case = build(shortened(MIXED, impl))
    q, k, v, grad = (torch.stack([x, x + 1], dim=3).flatten(2)[..., ::2] for x in (*case.parts, case.grad))
    for got, expected in zip(
        run(replace(case, parts=(q, k, v), grad=grad), impl), run(case, impl), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("level")
def test_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    case = build(MIXED, heads=(9, 3), width=64, dtype=dtype)
    everyone, starts = run(case, "cpp"), case.rows.offsets.tolist()
    for chosen in ([0, 1, 2, 4, 5, 10], [3, 6, 9], [7], [8]):
        tokens = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in chosen])
        some = [(MIXED[s][0], chosen.index(MIXED[s][1]) if MIXED[s][1] >= 0 else -1) for s in chosen]
        q, k, v = (part[tokens] for part in case.parts)
        for got, expected in zip(
            run(Case((q, k, v), case.grad[tokens], table(some), case.scale), "cpp"), everyone, strict=True
        ):
            assert torch.equal(got, expected[tokens])


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    case = build([*MIXED, (300, -1), *[(70, 11)] * 12], heads=(9, 3), width=64, dtype=dtype)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert _C.max_threads() == threads
            results.append(run(case, "cpp"))
    finally:
        torch.set_num_threads(before)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


def test_the_references_gradient_is_the_slope() -> None:
    case = wide(build([(4, -1), (3, 0), (1, 0), (0, 0), (2, -1)], heads=(2, 1), width=3))
    parts = [part.requires_grad_() for part in case.parts]
    assert torch.autograd.gradcheck(lambda q, k, v: packed_attention(q, k, v, case.rows, scale=0.7), parts)


def test_the_choice_goes_by_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFTRL_IMPL", raising=False)
    case = build(MIXED)
    chosen = {dtype: dispatch.choose("packed_attention", None, torch.empty(0, dtype=dtype)) for dtype in
              (torch.float32, torch.bfloat16, torch.float64)}  # fmt: skip
    assert chosen == {torch.float32: "cpp", torch.bfloat16: "cpp", torch.float64: "torch"}
    for got, expected in zip(run(case, None), run(case, "cpp"), strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(UserError, match=r"impl='cpp' cannot run op 'packed_attention'.*float64"):
        run(wide(case), "cpp")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_check_accepts_is_within_the_tensors(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 4))
    wild = st.sampled_from([-(2**31), -2, -1, 0, 1, 2, 3, 17, 2**31 - 1])
    entry = st.one_of(st.just(-1), st.just(0), wild)
    parent = torch.tensor(data.draw(st.lists(entry, min_size=count, max_size=count))).int()
    steps = data.draw(st.lists(st.one_of(st.integers(0, 3), wild), min_size=count, max_size=count))
    tokens = data.draw(st.sampled_from([max(0, min(sum(steps), 40)), 3]))
    offsets = torch.tensor([0, *steps]).cumsum(0).int()
    rows = PackedRows(offsets, parent)
    try:
        rows.check(tokens)
    except UserError:
        return
    ones = torch.ones(tokens, 1, 8)
    for impl in IMPLS:
        out, *grads = run(Case((ones, ones, ones), ones, rows, 1.0), impl)
        assert torch.allclose(out, ones)
        assert abs(float(grads[2].sum()) - out.numel()) < 1e-3
        assert largest(torch.cat(grads[:2])) < 1e-5


BAD_TABLES = [
    ([0, 4], [-1, 0], r"rows.offsets is torch.int32 \[2\]; needed: contiguous torch.int32 \[3\]"),
    ([1, 4, 7], [-1, 0], "rows.offsets: needed: ascending from 0 to T = 7"),
    ([0, 4, 6], [-1, 0], "rows.offsets: needed: ascending from 0 to T = 7"),
    ([0, 9, 7], [-1, 0], "rows.offsets: "),
    ([0, 2**31 - 1, -(2**31), 7], [-1, -1, -1], "rows.offsets: "),
    ([0, 4, 7], [-2, 0], "rows.parent: needed: -1 or an earlier segment"),
    ([0, 4, 7], [-1, 1], "rows.parent: needed: -1 or an earlier segment"),
    ([0, 4, 6, 7], [-1, 0, 1], "rows.parent: needed: a parent that has no parent itself"),
]


@pytest.mark.parametrize(("offsets", "parent", "message"), BAD_TABLES)
def test_bad_tables_are_named(offsets: list[int], parent: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackedRows(torch.tensor(offsets).int(), torch.tensor(parent).int()).check(7)


def test_bad_tensors_are_named() -> None:
    case = build(MIXED)
    (q, k, v), rows = case.parts, case.rows
    with pytest.raises(UserError, match=r"rows.parent is torch.int64 \[11\]"):
        replace(rows, parent=rows.parent.long()).check(len(q))
    with pytest.raises(UserError, match=r"q, k, v have shapes \[556, 6\]"):
        packed_attention(q[:, :, 0], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="q, k, v have shapes"):
        packed_attention(q, k, v[:-1], rows, scale=1.0)
    with pytest.raises(UserError, match="q, k: Hq 5, Hkv 2"):
        packed_attention(q[:, :5], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="Dh 16 and 32"):
        packed_attention(q[:, :, :16], k, v, rows, scale=1.0)
    with pytest.raises(UserError, match="one type and one device"):
        packed_attention(q.bfloat16(), k, v, rows, scale=1.0)
    with pytest.raises(UserError, match=r"rows.parent is on meta; needed: on cpu"):
        packed_attention(q, k, v, replace(rows, parent=rows.parent.to("meta")), scale=1.0)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_reference_is_plain_attention(dtype: torch.dtype) -> None:
    case = build([(40, -1)], heads=(4, 4), dtype=dtype)
    heads = (part.double().transpose(0, 1) for part in case.parts)
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1)
    got = packed_attention_torch(*case.parts, case.rows, case.scale)
    assert largest(got.double() - expected) <= 2 * torch.finfo(dtype).eps * largest(expected)
