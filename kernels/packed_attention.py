"""``packed_attention`` on the GPU: forward, gradient of the queries, gradients of the keys and values.

A program's tile of queries holds all query heads of one key head, so that each key is read once for them. Queries
walk their parent's keys, then their own up to themselves. Keys walk the queries that see them: those of their own
segment, then those of each child. So every gradient has one writer and one order of sums: no atomics, the same bits
on every run. Scores are in powers of two: ``scale`` carries ``log2 e``, and so does the saved ``lse``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.attention_tiles import dense_heads, load_rows, padded_head, ragged_tiles, softmax_step
from sftrl_fast.kernels.attention_work import Groups, packed_work
from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase

HALF = {
    64: {"forward": (64, 32, 4, 4), "queries": (64, 32, 4, 3), "keys": (32, 64, 4, 2)},
    128: {"forward": (64, 32, 4, 3), "queries": (64, 32, 4, 2), "keys": (32, 64, 8, 2)},
    256: {"forward": (64, 32, 8, 2), "queries": (32, 32, 8, 2), "keys": (32, 32, 8, 2)},
}
SINGLE = {
    64: {"forward": (32, 16, 4, 2), "queries": (32, 16, 4, 2), "keys": (16, 32, 4, 2)},
    128: {"forward": (32, 16, 4, 2), "queries": (16, 32, 8, 2), "keys": (16, 32, 8, 2)},
    256: {"forward": (16, 16, 8, 3), "queries": (16, 16, 8, 2), "keys": (16, 16, 8, 2)},
}
TILES = {torch.bfloat16: HALF, torch.float16: HALF, torch.float32: SINGLE}
"""Type -> widest head -> kernel -> ROWS (query heads x tokens) and KEYS of a tile, warps and stages."""


@triton.jit
def _keys(source, begin, key, live, kv_head, stride, stride_head, DH: tl.constexpr, WIDTH: tl.constexpr):
    """``source [T, Hkv, Dh]`` of a tile of keys."""
    at = tl.arange(0, WIDTH)
    place = source + (begin + key).to(tl.int64) * stride + kv_head * stride_head
    return tl.load(place[:, None] + at[None, :], mask=live[:, None] & (at < DH)[None, :], other=0.0)


@triton.jit
def _attend(
    acc, top, total, q, k, v, begin, stop, seen, kv_head, scale, stride_k, stride_k_head, stride_v, stride_v_head,
    DH: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Bring the keys ``begin : begin + stop`` into the running softmax of a tile whose rows see ``seen`` of them."""
    for start in range(0, stop, KEYS):
        key = start + tl.arange(0, KEYS)
        its_k = _keys(k, begin, key, key < stop, kv_head, stride_k, stride_k_head, DH, WIDTH)
        its_v = _keys(v, begin, key, key < stop, kv_head, stride_v, stride_v_head, DH, WIDTH)
        visible = key[None, :] < seen[:, None]
        acc, top, total = softmax_step(acc, top, total, q, its_k, its_v, visible, scale)
    return acc, top, total


@triton.jit
def _forward(
    q, k, v, out, lse, tiles, offsets, parents, scale, heads,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head,
    REPEAT: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of queries."""
    segment, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if segment < 0:
        return
    kv_head = tl.program_id(1)
    begin = tl.load(offsets + segment)
    length = tl.load(offsets + segment + 1) - begin
    row = first + tl.arange(0, ROWS)
    live = row < length * REPEAT
    its_q = load_rows(q, begin, row, live, kv_head, stride_q, stride_q_head, REPEAT, DH, WIDTH)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    parent = tl.load(parents + segment)
    if parent >= 0:
        parent_begin = tl.load(offsets + parent)
        parent_length = tl.load(offsets + parent + 1) - parent_begin
        acc, top, total = _attend(
            acc, top, total, its_q, k, v, parent_begin, parent_length, tl.zeros_like(row) + parent_length,
            kv_head, scale, stride_k, stride_k_head, stride_v, stride_v_head, DH, WIDTH, KEYS,
        )  # fmt: skip
    stop = tl.minimum(length, (first + ROWS - 1) // REPEAT + 1)
    acc, top, total = _attend(
        acc, top, total, its_q, k, v, begin, stop, row // REPEAT + 1,
        kv_head, scale, stride_k, stride_k_head, stride_v, stride_v_head, DH, WIDTH, KEYS,
    )  # fmt: skip
    place = (begin + row // REPEAT).to(tl.int64) * heads + kv_head * REPEAT + row % REPEAT
    at = tl.arange(0, WIDTH)
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * DH + at[None, :], result, mask=live[:, None] & (at < DH)[None, :])
    tl.store(lse + place, top + tl.log2(total), mask=live)


@triton.jit
def _weights(score, lse, visible):
    """Softmax weights, never over 1. A score rounds otherwise here than in the forward pass: one of 1e8 by more than
    what ``exp2`` can hold."""
    behind = tl.minimum(score - lse, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(tl.where(visible, behind, float("-inf")))


@triton.jit
def _pull(
    dq, q, grad, lse, delta, k, v, begin, stop, seen, kv_head, scale,
    stride_k, stride_k_head, stride_v, stride_v_head,
    DH: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Add to ``dq`` what the keys ``begin : begin + stop`` give."""
    for start in range(0, stop, KEYS):
        key = start + tl.arange(0, KEYS)
        its_k = _keys(k, begin, key, key < stop, kv_head, stride_k, stride_k_head, DH, WIDTH)
        its_v = _keys(v, begin, key, key < stop, kv_head, stride_v, stride_v_head, DH, WIDTH)
        score = tl.dot(q, tl.trans(its_k), input_precision="ieee") * scale
        weight = _weights(score, lse[:, None], key[None, :] < seen[:, None])
        slope = tl.dot(grad, tl.trans(its_v), input_precision="ieee")
        d = (weight * (slope - delta[:, None])).to(its_k.dtype)
        dq = tl.dot(d, its_k, dq, input_precision="ieee")
    return dq


@triton.jit
def _grad_queries(
    q, k, v, out, grad, lse, delta, dq, tiles, offsets, parents, scale, plain_scale, heads,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head,
    REPEAT: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """``dq`` of one tile, and ``delta``, the product of each row's output with its gradient.

    With p the weights: d out / d score is p (grad v - delta).
    """
    segment, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if segment < 0:
        return
    kv_head = tl.program_id(1)
    begin = tl.load(offsets + segment)
    length = tl.load(offsets + segment + 1) - begin
    row = first + tl.arange(0, ROWS)
    live = row < length * REPEAT
    its_q = load_rows(q, begin, row, live, kv_head, stride_q, stride_q_head, REPEAT, DH, WIDTH)
    its_grad = load_rows(grad, begin, row, live, kv_head, heads * DH, DH, REPEAT, DH, WIDTH)
    its_out = load_rows(out, begin, row, live, kv_head, heads * DH, DH, REPEAT, DH, WIDTH)
    place = (begin + row // REPEAT).to(tl.int64) * heads + kv_head * REPEAT + row % REPEAT
    its_delta = tl.sum(its_grad.to(tl.float32) * its_out.to(tl.float32), 1)
    tl.store(delta + place, its_delta, mask=live)
    its_lse = tl.load(lse + place, mask=live, other=float("inf"))
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    parent = tl.load(parents + segment)
    if parent >= 0:
        parent_begin = tl.load(offsets + parent)
        parent_length = tl.load(offsets + parent + 1) - parent_begin
        acc = _pull(
            acc, its_q, its_grad, its_lse, its_delta, k, v, parent_begin, parent_length,
            tl.zeros_like(row) + parent_length, kv_head, scale,
            stride_k, stride_k_head, stride_v, stride_v_head, DH, WIDTH, KEYS,
        )  # fmt: skip
    stop = tl.minimum(length, (first + ROWS - 1) // REPEAT + 1)
    acc = _pull(
        acc, its_q, its_grad, its_lse, its_delta, k, v, begin, stop, row // REPEAT + 1, kv_head, scale,
        stride_k, stride_k_head, stride_v, stride_v_head, DH, WIDTH, KEYS,
    )  # fmt: skip
    at = tl.arange(0, WIDTH)
    result = (acc * plain_scale).to(dq.dtype.element_ty)
    tl.store(dq + place[:, None] * DH + at[None, :], result, mask=live[:, None] & (at < DH)[None, :])


@triton.jit
def _push(
    dk, dv, k, v, q, grad, lse, delta, begin, start, stop, unseen, kv_head, scale, heads,
    stride_q, stride_q_head,
    REPEAT: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add what the rows ``start : stop`` of the segment at ``begin`` give; its tokens before ``unseen`` do not see
    the key."""
    for first in range(start, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        live = row < stop
        its_q = load_rows(q, begin, row, live, kv_head, stride_q, stride_q_head, REPEAT, DH, WIDTH)
        its_grad = load_rows(grad, begin, row, live, kv_head, heads * DH, DH, REPEAT, DH, WIDTH)
        place = (begin + row // REPEAT).to(tl.int64) * heads + kv_head * REPEAT + row % REPEAT
        its_lse = tl.load(lse + place, mask=live, other=float("inf"))  # a row past the end has no weight
        its_delta = tl.load(delta + place, mask=live, other=0.0)
        score = tl.dot(k, tl.trans(its_q), input_precision="ieee") * scale
        seen = (row // REPEAT)[None, :] >= unseen[:, None]
        weight = _weights(score, its_lse[None, :], seen)
        dv = tl.dot(weight.to(its_grad.dtype), its_grad, dv, input_precision="ieee")
        slope = tl.dot(v, tl.trans(its_grad), input_precision="ieee")
        d = (weight * (slope - its_delta[None, :])).to(its_q.dtype)
        dk = tl.dot(d, its_q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _grad_keys(
    q, k, v, grad, lse, delta, dk, dv, tiles, offsets, children, child_offsets, scale, plain_scale, heads,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head,
    REPEAT: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv`` of one tile of keys."""
    segment, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if segment < 0:
        return
    kv_head = tl.program_id(1)
    begin = tl.load(offsets + segment)
    length = tl.load(offsets + segment + 1) - begin
    key = first + tl.arange(0, KEYS)
    its_k = _keys(k, begin, key, key < length, kv_head, stride_k, stride_k_head, DH, WIDTH)
    its_v = _keys(v, begin, key, key < length, kv_head, stride_v, stride_v_head, DH, WIDTH)
    acc_k = tl.zeros((KEYS, WIDTH), tl.float32)
    acc_v = tl.zeros((KEYS, WIDTH), tl.float32)
    acc_k, acc_v = _push(
        acc_k, acc_v, its_k, its_v, q, grad, lse, delta, begin, first * REPEAT, length * REPEAT, key, kv_head,
        scale, heads, stride_q, stride_q_head, REPEAT, DH, WIDTH, ROWS,
    )  # fmt: skip
    for index in range(tl.load(child_offsets + segment), tl.load(child_offsets + segment + 1)):
        child = tl.load(children + index)
        child_begin = tl.load(offsets + child)
        child_length = tl.load(offsets + child + 1) - child_begin
        acc_k, acc_v = _push(
            acc_k, acc_v, its_k, its_v, q, grad, lse, delta, child_begin, 0, child_length * REPEAT,
            tl.zeros_like(key), kv_head, scale, heads, stride_q, stride_q_head, REPEAT, DH, WIDTH, ROWS,
        )  # fmt: skip
    at = tl.arange(0, WIDTH)
    place = ((begin + key).to(tl.int64) * (heads // REPEAT) + kv_head)[:, None] * DH + at[None, :]
    inside = (key < length)[:, None] & (at < DH)[None, :]
    tl.store(dk + place, (acc_k * plain_scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + place, acc_v.to(dv.dtype.element_ty), mask=inside)


def packed_attention_triton(q: Tensor, k: Tensor, v: Tensor, rows: Any, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.packed_attention`, ``rows`` its ``PackedRows``."""
    result: Tensor = _PackedAttention.apply(q, k, v, rows, scale)
    return result


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Any, scale: float) -> Tensor:
        q, k, v = (dense_heads(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if q.numel():
            launch = _launch(q, k, "forward")
            tiles = ragged_tiles(rows.offsets, len(q), launch["REPEAT"], launch["ROWS"])
            _forward[(len(tiles), k.shape[1])](
                q, k, v, out, lse, tiles, rows.offsets, rows.parent, scale / math.log(2), q.shape[1],
                *_strides(q, k, v), **launch,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, rows.offsets, rows.parent)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse, offsets, parent = ctx.saved_tensors
        grad = grad.contiguous()
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if not q.numel():
            return dq, dk, dv, None, None
        delta, heads, scales = torch.empty_like(lse), q.shape[1], (ctx.scale / math.log(2), ctx.scale)
        launch = _launch(q, k, "queries")
        tiles = ragged_tiles(offsets, len(q), launch["REPEAT"], launch["ROWS"])
        _grad_queries[(len(tiles), k.shape[1])](
            q, k, v, out, grad, lse, delta, dq, tiles, offsets, parent, *scales, heads, *_strides(q, k, v),
            **launch,
        )  # fmt: skip
        launch = _launch(q, k, "keys")
        tiles = ragged_tiles(offsets, len(q), 1, launch["KEYS"])
        _grad_keys[(len(tiles), k.shape[1])](
            q, k, v, grad, lse, delta, dk, dv, tiles, offsets, *_children(parent), *scales, heads,
            *_strides(q, k, v), **launch,
        )  # fmt: skip
        return dq, dk, dv, None, None


def _children(parent: Tensor) -> tuple[Tensor, Tensor]:
    """All segments by their parent, and where those of each segment begin, ``[S + 1]``."""
    ordered, children = parent.sort(stable=True)
    segments = torch.arange(len(parent) + 1, dtype=parent.dtype, device=parent.device)
    return children, torch.searchsorted(ordered, segments)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _launch(q: Tensor, k: Tensor, kernel: str) -> dict[str, Any]:
    """The kernel's sizes, its tile, and how it is computed."""
    width = padded_head(q.shape[2])
    tile_rows, tile_keys, warps, stages = TILES[q.dtype][max(64, width)][kernel]
    sizes = {"REPEAT": q.shape[1] // k.shape[1], "DH": q.shape[2], "WIDTH": width}
    return sizes | {"ROWS": tile_rows, "KEYS": tile_keys, "num_warps": warps, "num_stages": stages} | FUSION


REGISTER_BUDGET = 255


def _shipped(name: str, repeat: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    return _launch(torch.empty(0, repeat, dim, dtype=dtype), torch.empty(0, 1, dim), name)


def _case(name: str, kernel: Any, dtype: torch.dtype, repeat: int, dim: int) -> CompileCase:
    data, launch = f"*{TYPE_NAMES[dtype]}", _shipped(name, repeat, dim, dtype)
    signature = dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), data)
    signature |= dict.fromkeys(("lse", "delta"), "*fp32") | dict.fromkeys(("scale", "plain_scale"), "fp32")
    signature |= dict.fromkeys(("tiles", "offsets", "parents"), "*i32") | {"heads": "i32"}
    signature |= {"children": "*i64", "child_offsets": "*i64"}
    signature |= {f"stride_{x}{head}": "i32:16" for x in "qkv" for head in ("", "_head")}
    return CompileCase(
        f"packed_attention.{name}/Dh={dim}", TYPE_NAMES[dtype], kernel,
        {key: kind for key, kind in signature.items() if key in kernel.arg_names},
        {key: value for key, value in launch.items() if key.isupper()},
        launch["num_warps"], launch["num_stages"], REGISTER_BUDGET,
    )  # fmt: skip


COMPILE_CASES = [
    _case(name, kernel, dtype, repeat, dim)
    for name, kernel in (("forward", _forward), ("queries", _grad_queries), ("keys", _grad_keys))
    for dtype, dims in (
        (torch.bfloat16, ((3, 64), (4, 80), (4, 128), (2, 256))),
        (torch.float32, ((3, 64), (4, 128), (2, 256))),
        (torch.float16, ((3, 64),)),
    )
    for repeat, dim in dims
]

WORK = [
    work
    for at in (
        Groups(1, 8, 130, 60, 60, 9, 3, 64, torch.bfloat16),
        Groups(8, 8, 130, 60, 60, 9, 3, 64, torch.bfloat16),
        Groups(4, 8, 500, 400, 400, 32, 8, 128, torch.bfloat16),
    )
    for work in packed_work(
        at,
        {
            name: _shipped(name, at.heads // at.kv_heads, at.dim, at.dtype)
            for name in ("forward", "queries", "keys")
        },
    )
]
