"""``cached_attention`` on the GPU.

With a few queries a sequence (decoding) the context is cut into chunks of :data:`CHUNK` tokens, a program each: a
chunk of a prefix is read once for a tile of all queries of the group, a chunk of own tokens for those of one sequence.
A second kernel brings a row's parts together in the order of the context. Chunks do not depend on the batch.

With many queries a sequence (prefill) a program takes a tile of one sequence's queries through its whole context.

Nothing is atomic, and a sequence's neighbours change no bit but through the choice between the two, which sum in
another order: one sequence with more queries than :data:`OWN_ROWS` takes the whole batch the second way.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.attention_tiles import dense_heads, load_rows, padded_head, ragged_tiles, softmax_step
from sftrl_fast.kernels.attention_work import Groups, cached_work
from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase

CHUNK = 256
"""Tokens of a chunk: its parts then cost a few hundredths of the bytes of its keys and values."""
OWN_ROWS = 16
"""Rows (query heads x tokens) of a sequence's tile when decoding; more only if a key head has more query heads."""

HALF = {
    64: {"parts": (64, 64, 4, 5), "whole": (64, 32, 4, 5)},
    128: {"parts": (64, 32, 4, 5), "whole": (64, 32, 4, 4)},
    256: {"parts": (32, 32, 8, 3), "whole": (64, 32, 8, 3)},
}
SINGLE = {
    64: {"parts": (32, 16, 4, 3), "whole": (32, 16, 4, 2)},
    128: {"parts": (32, 16, 8, 2), "whole": (32, 16, 8, 2)},
    256: {"parts": (16, 16, 8, 3), "whole": (16, 16, 8, 2)},
}
TILES = {torch.bfloat16: HALF, torch.float16: HALF, torch.float32: SINGLE}
"""Type -> widest head -> kernel -> rows (of a group, or of a sequence) and KEYS of a tile, warps and stages. A table
of pages is read a stage ahead of the keys: five stages keep two tiles of keys under way."""
CHANGING = ("tokens", "groups", "prefix_width", "own_width", "prefix_slots", "slots")
"""Numbers that differ from step to step: none of their values may cost a compilation."""
MERGE_HEADS, MERGE_WARPS, MERGE_STAGES = 4, 2, 3


@triton.jit
def _walk(
    acc, top, total, q, k_cache, v_cache, pages, start, stop, seen, kv_head, kv_heads, scale,
    PAGE: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Bring the tokens ``start : stop`` in ``pages`` into the softmax of a tile whose rows see ``seen`` of them all."""
    at = tl.arange(0, WIDTH)
    for first in range(start, stop, KEYS):
        key = first + tl.arange(0, KEYS)
        page = tl.load(pages + key // PAGE, mask=key < stop, other=0)
        place = (page.to(tl.int64) * kv_heads + kv_head) * (PAGE * DH) + key % PAGE * DH
        inside = (key < stop)[:, None] & (at < DH)[None, :]
        k = tl.load(k_cache + place[:, None] + at[None, :], mask=inside, other=0.0)
        v = tl.load(v_cache + place[:, None] + at[None, :], mask=inside, other=0.0)
        visible = key[None, :] < seen[:, None]
        acc, top, total = softmax_step(acc, top, total, q, k, v, visible, scale)
    return acc, top, total


@triton.jit
def _part(
    q, k_cache, v_cache, pages, acc, stats, begin, first, count, start, stop, before, slot, slots, tokens,
    heads, kv_head, kv_heads, scale, stride_q, stride_q_head, CAUSAL: tl.constexpr,
    REPEAT: tl.constexpr, PAGE: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """One chunk of one tile, into ``acc [slots, T, Hq, Dh]`` and ``stats [2, slots, T, Hq]``."""
    row = first + tl.arange(0, ROWS)
    live = row < count * REPEAT
    its_q = load_rows(q, begin, row, live, kv_head, stride_q, stride_q_head, REPEAT, DH, WIDTH)
    seen = before + row // REPEAT + 1 if CAUSAL else tl.zeros_like(row) + stop
    its_acc = tl.zeros((ROWS, WIDTH), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    its_acc, top, total = _walk(
        its_acc, top, total, its_q, k_cache, v_cache, pages, start, stop, seen, kv_head, kv_heads, scale,
        PAGE, DH, WIDTH, KEYS,
    )  # fmt: skip
    at = tl.arange(0, WIDTH)
    plane = tl.cast(tokens, tl.int64) * heads
    place = slot * plane + (begin + row // REPEAT) * heads + kv_head * REPEAT + row % REPEAT
    tl.store(acc + place[:, None] * DH + at[None, :], its_acc, mask=live[:, None] & (at < DH)[None, :])
    tl.store(stats + place, top, mask=live)
    tl.store(stats + slots * plane + place, total, mask=live)


@triton.jit(do_not_specialize=CHANGING)
def _parts(
    q, k_cache, v_cache, acc, stats, group_tiles, group_offsets, own_tiles, query_offsets,
    prefix_pages, prefix_lengths, own_pages, own_lengths, scale, tokens, heads, kv_heads, groups,
    prefix_width, own_width, prefix_slots, slots, stride_q, stride_q_head,
    REPEAT: tl.constexpr, PAGE: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUP_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One chunk of a tile: of a group's prefix for the first ``groups`` programs, else of a sequence's own tokens."""
    index, kv_head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = chunk * CHUNK
    if index < groups:
        group, first = tl.load(group_tiles + 2 * index), tl.load(group_tiles + 2 * index + 1)
        if group >= 0:
            stop = tl.minimum(start + CHUNK, tl.load(prefix_lengths + group))
            if start < stop:
                begin = tl.load(group_offsets + group)
                count = tl.load(group_offsets + group + 1) - begin
                _part(
                    q, k_cache, v_cache, prefix_pages + tl.cast(group, tl.int64) * prefix_width, acc, stats,
                    begin, first, count, start, stop, 0, chunk, slots, tokens, heads, kv_head, kv_heads,
                    scale, stride_q, stride_q_head, False, REPEAT, PAGE, DH, WIDTH, GROUP_ROWS, KEYS,
                )  # fmt: skip
    else:
        sequence = tl.load(own_tiles + 2 * (index - groups))
        first = tl.load(own_tiles + 2 * (index - groups) + 1)
        if sequence >= 0:
            begin = tl.load(query_offsets + sequence)
            count = tl.load(query_offsets + sequence + 1) - begin
            before = tl.load(own_lengths + sequence) - count
            last = tl.minimum(count, (first + OWN_ROWS - 1) // REPEAT + 1)
            stop = tl.minimum(start + CHUNK, before + last)
            if start < stop:
                _part(
                    q, k_cache, v_cache, own_pages + tl.cast(sequence, tl.int64) * own_width, acc, stats,
                    begin, first, count, start, stop, before, prefix_slots + chunk, slots, tokens, heads,
                    kv_head, kv_heads, scale, stride_q, stride_q_head, True, REPEAT, PAGE, DH, WIDTH,
                    OWN_ROWS, KEYS,
                )  # fmt: skip


@triton.jit(do_not_specialize=CHANGING)
def _merge_parts(
    acc, stats, out, sequence_of, query_offsets, prefix_of, prefix_lengths, own_lengths,
    tokens, heads, prefix_slots, slots,
    DH: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The parts that a token sees, in the order of the context, for some of its heads."""
    token = tl.program_id(0)
    head, at = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, WIDTH)
    sequence = tl.load(sequence_of + token)
    prefix = tl.cdiv(tl.load(prefix_lengths + tl.load(prefix_of + sequence)), CHUNK)
    after = tl.load(query_offsets + sequence + 1) - 1 - token
    own = tl.cdiv(tl.load(own_lengths + sequence) - after, CHUNK)
    live = head < heads
    inside = live[:, None] & (at < DH)[None, :]
    plane = tl.cast(tokens, tl.int64) * heads
    total_acc = tl.zeros((HEADS, WIDTH), tl.float32)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    for part in tl.range(0, prefix + own, num_stages=STAGES):
        slot = tl.where(part < prefix, part, prefix_slots + part - prefix)
        place = slot * plane + token * heads + head
        its_top = tl.load(stats + place, mask=live, other=0.0)
        its_total = tl.load(stats + slots * plane + place, mask=live, other=1.0)
        its_acc = tl.load(acc + place[:, None] * DH + at[None, :], mask=inside, other=0.0)
        new_top = tl.maximum(top, its_top)
        level = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay, its_decay = tl.exp2(top - level), tl.exp2(its_top - level)
        total_acc = total_acc * decay[:, None] + its_acc * its_decay[:, None]
        total = total * decay + its_total * its_decay
        top = new_top
    place = (tl.cast(token, tl.int64) * heads + head)[:, None] * DH + at[None, :]
    tl.store(out + place, (total_acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def _whole(
    q, k_cache, v_cache, out, tiles, query_offsets, prefix_of, prefix_pages, prefix_lengths,
    own_pages, own_lengths, scale, heads, kv_heads, prefix_width, own_width, stride_q, stride_q_head,
    REPEAT: tl.constexpr, PAGE: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """The whole context of a tile of one sequence's queries."""
    sequence, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if sequence < 0:
        return
    kv_head = tl.program_id(1)
    begin = tl.load(query_offsets + sequence)
    count = tl.load(query_offsets + sequence + 1) - begin
    row = first + tl.arange(0, ROWS)
    live = row < count * REPEAT
    its_q = load_rows(q, begin, row, live, kv_head, stride_q, stride_q_head, REPEAT, DH, WIDTH)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    group = tl.load(prefix_of + sequence)
    prefix = tl.load(prefix_lengths + group)
    before = tl.load(own_lengths + sequence) - count
    own = before + tl.minimum(count, (first + ROWS - 1) // REPEAT + 1)
    acc, top, total = _walk(
        acc, top, total, its_q, k_cache, v_cache, prefix_pages + tl.cast(group, tl.int64) * prefix_width,
        0, prefix, tl.zeros_like(row) + prefix, kv_head, kv_heads, scale, PAGE, DH, WIDTH, KEYS,
    )  # fmt: skip
    acc, top, total = _walk(
        acc, top, total, its_q, k_cache, v_cache, own_pages + tl.cast(sequence, tl.int64) * own_width,
        0, own, before + row // REPEAT + 1, kv_head, kv_heads, scale, PAGE, DH, WIDTH, KEYS,
    )  # fmt: skip
    at = tl.arange(0, WIDTH)
    place = (begin + row // REPEAT).to(tl.int64) * heads + kv_head * REPEAT + row % REPEAT
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * DH + at[None, :], result, mask=live[:, None] & (at < DH)[None, :])


def cached_attention_triton(q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Any, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.cached_attention`, ``rows`` its ``CacheRows``.

    Which program takes which rows is found at the first call with ``rows`` and kept with it: its tables
    ``query_offsets`` and ``prefix_of`` must not be changed in place. For a CUDA graph make ``rows`` while capturing.
    """
    q = dense_heads(q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.numel():
        return out
    page, sequences = k_cache.shape[2], len(rows.own_lengths)
    most_queries = 1 if len(q) == sequences else rows.max_query
    slots = [triton.cdiv(pages.shape[1] * page, CHUNK) for pages in (rows.prefix_pages, rows.own_pages)]
    if most_queries * (q.shape[1] // k_cache.shape[1]) > OWN_ROWS or sum(slots) <= 1:
        _run_whole(q, k_cache, v_cache, out, rows, scale / math.log(2))
    else:
        _run_parts(q, k_cache, v_cache, out, rows, scale / math.log(2), slots)
    return out


def _run_whole(q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, rows: Any, scale: float) -> None:
    launch, kv_heads = _launch(q, k_cache, "whole"), k_cache.shape[1]
    plan = _plan(rows, len(q), launch["REPEAT"], launch["ROWS"], None)
    _whole[(len(plan.own_tiles), kv_heads)](
        q, k_cache, v_cache, out, plan.own_tiles, rows.query_offsets, rows.prefix_of, rows.prefix_pages,
        rows.prefix_lengths, rows.own_pages, rows.own_lengths, scale, q.shape[1], kv_heads,
        rows.prefix_pages.shape[1], rows.own_pages.shape[1], *q.stride()[:2], **launch,
    )  # fmt: skip


def _run_parts(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    rows: Any,
    scale: float,
    chunks: list[int],
) -> None:
    (tokens, heads, width), kv_heads, (prefix_slots, own_slots) = q.shape, k_cache.shape[1], chunks
    launch = _launch(q, k_cache, "parts")
    plan = _plan(rows, tokens, launch["REPEAT"], launch["OWN_ROWS"], launch["GROUP_ROWS"])
    slots, groups = prefix_slots + own_slots, len(plan.group_tiles) if prefix_slots else 0
    acc = torch.empty((slots, tokens, heads, width), dtype=torch.float32, device=q.device)
    stats = torch.empty((2, slots, tokens, heads), dtype=torch.float32, device=q.device)
    _parts[(groups + len(plan.own_tiles), kv_heads, max(chunks))](
        q, k_cache, v_cache, acc, stats, plan.group_tiles, plan.group_offsets, plan.own_tiles,
        rows.query_offsets, rows.prefix_pages, rows.prefix_lengths, rows.own_pages, rows.own_lengths, scale,
        tokens, heads, kv_heads, groups, rows.prefix_pages.shape[1], rows.own_pages.shape[1], prefix_slots,
        slots, *q.stride()[:2], **launch,
    )  # fmt: skip
    _merge_parts[(tokens, triton.cdiv(heads, MERGE_HEADS))](
        acc, stats, out, plan.sequence_of, rows.query_offsets, rows.prefix_of, rows.prefix_lengths,
        rows.own_lengths, tokens, heads, prefix_slots, slots, DH=width, WIDTH=launch["WIDTH"], CHUNK=CHUNK,
        HEADS=MERGE_HEADS, STAGES=MERGE_STAGES, num_warps=MERGE_WARPS, **FUSION,
    )  # fmt: skip


def _launch(q: Tensor, k_cache: Tensor, kernel: str) -> dict[str, Any]:
    """The kernel's sizes, its tiles, and how they are computed."""
    repeat, width = q.shape[1] // k_cache.shape[1], padded_head(q.shape[2])
    tile_rows, tile_keys, warps, stages = TILES[q.dtype][max(64, width)][kernel]
    tile = {"ROWS": tile_rows, "KEYS": tile_keys, "num_warps": warps, "num_stages": stages}
    if kernel == "parts":
        own_rows = min(max(OWN_ROWS, triton.next_power_of_2(repeat)), tile_rows)
        tile |= {"GROUP_ROWS": tile.pop("ROWS"), "OWN_ROWS": own_rows, "CHUNK": CHUNK}
    sizes = {"REPEAT": repeat, "PAGE": k_cache.shape[2], "DH": q.shape[2], "WIDTH": width}
    return sizes | tile | FUSION


@dataclass(frozen=True, slots=True)
class _Plan:
    """Tiles by :func:`ragged_tiles` of the sequences and of the groups, the groups' first queries, and the sequence
    of each query."""

    own_tiles: Tensor
    group_tiles: Tensor
    group_offsets: Tensor
    sequence_of: Tensor


_plans: WeakKeyDictionary[Any, dict[Hashable, _Plan]] = WeakKeyDictionary()
"""One for each step, not for each layer."""


def _plan(rows: Any, tokens: int, repeat: int, own_rows: int, group_rows: int | None) -> _Plan:
    kept, key = _plans.setdefault(rows, {}), (repeat, own_rows, group_rows)
    if key not in kept:
        offsets, groups = rows.query_offsets, len(rows.prefix_lengths)
        own_tiles = ragged_tiles(offsets, tokens, repeat, own_rows)
        if group_rows is None:
            kept[key] = _Plan(own_tiles, own_tiles, offsets, offsets)
        else:
            each = torch.arange(groups + 1, dtype=torch.int32, device=offsets.device)
            group_offsets = offsets[torch.searchsorted(rows.prefix_of, each)]
            token = torch.arange(tokens, dtype=torch.int32, device=offsets.device)
            sequence_of = torch.searchsorted(offsets[1:], token, right=True, out_int32=True)
            group_tiles = ragged_tiles(group_offsets, tokens, repeat, group_rows)
            kept[key] = _Plan(own_tiles, group_tiles, group_offsets, sequence_of)
    return kept[key]


REGISTER_BUDGET = {"parts": 255, "whole": 255, "merge": 64}


def _shipped(name: str, repeat: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    return _launch(torch.empty(1, repeat, dim, dtype=dtype), torch.empty(1, 1, 16, dim), name)


def _case(name: str, kernel: Any, dtype: torch.dtype, repeat: int, dim: int) -> CompileCase:
    launch = _shipped(name, repeat, dim, dtype)
    data, numbers = f"*{TYPE_NAMES[dtype]}", ("prefix_lengths", "own_lengths", "prefix_pages", "own_pages")
    signature = dict.fromkeys(("q", "k_cache", "v_cache", "out"), data) | {"acc": "*fp32", "stats": "*fp32"}
    tables = ("tiles", "group_tiles", "group_offsets", "own_tiles", "query_offsets", "prefix_of", *numbers)
    signature |= dict.fromkeys(tables, "*i32") | {"scale": "fp32"}
    sizes = ("tokens", "heads", "kv_heads", "groups", "prefix_width", "own_width", "prefix_slots", "slots")
    signature |= dict.fromkeys(sizes, "i32") | {"stride_q": "i32:16", "stride_q_head": "i32:16"}
    return CompileCase(
        f"cached_attention.{name}/Dh={dim}", TYPE_NAMES[dtype], kernel,
        {key: kind for key, kind in signature.items() if key in kernel.arg_names},
        {key: value for key, value in launch.items() if key.isupper()},
        launch["num_warps"], launch["num_stages"], REGISTER_BUDGET[name],
    )  # fmt: skip


def _merge_case(dtype: torch.dtype, dim: int) -> CompileCase:
    tables = ("sequence_of", "query_offsets", "prefix_of", "prefix_lengths", "own_lengths")
    signature: dict[str, str] = dict.fromkeys(tables, "*i32")
    signature |= {"acc": "*fp32", "stats": "*fp32", "out": f"*{TYPE_NAMES[dtype]}"}
    signature |= dict.fromkeys(("tokens", "heads", "prefix_slots", "slots"), "i32")
    constexprs = {"DH": dim, "WIDTH": triton.next_power_of_2(dim), "CHUNK": CHUNK, "HEADS": MERGE_HEADS}
    return CompileCase(
        f"cached_attention.merge/Dh={dim}", TYPE_NAMES[dtype], _merge_parts, signature,
        constexprs | {"STAGES": MERGE_STAGES}, MERGE_WARPS, 3, REGISTER_BUDGET["merge"],
    )  # fmt: skip


COMPILE_CASES = [
    _case(name, kernel, dtype, repeat, dim)
    for name, kernel in (("parts", _parts), ("whole", _whole))
    for dtype, dims in (
        (torch.bfloat16, ((3, 64), (4, 80), (4, 128), (2, 256))),
        (torch.float32, ((3, 64), (4, 128), (2, 256))),
        (torch.float16, ((3, 64),)),
    )
    for repeat, dim in dims
] + [_merge_case(torch.bfloat16, 64), _merge_case(torch.bfloat16, 128), _merge_case(torch.float32, 256)]

WORK = [
    cached_work(Groups(8, 8, 130, 64, 1, 9, 3, 64, torch.bfloat16), _shipped("parts", 3, 64)),
    cached_work(Groups(8, 16, 500, 400, 1, 32, 8, 128, torch.bfloat16), _shipped("parts", 4, 128)),
    cached_work(Groups(1, 1, 0, 4000, 1, 9, 3, 64, torch.bfloat16), _shipped("parts", 3, 64)),
    cached_work(Groups(8, 8, 130, 124, 60, 9, 3, 64, torch.bfloat16), _shipped("whole", 3, 64)),
    cached_work(Groups(8, 1, 0, 1000, 1000, 32, 8, 128, torch.bfloat16), _shipped("whole", 4, 128)),
]
