"""``sample`` on the GPU, in two passes over the logits at the least and no sort.

The first kernel takes the rows in chunks of at most :data:`CHUNK` logits, all chunks of all rows at once: largest
logit and both sums of weights, plain and at the row's temperature. The second takes a row a program (several if the
vocabulary is small): it finds the thresholds of top-k and top-p by building them from the highest bit down, two bits
a walk, then inverts the distribution function over the chunks' sums and reads one more chunk to find the token. A
walk passes over chunks whose largest logit is below all thresholds it tries, and without top-k and top-p there is
no walk. The blocks follow from the vocabulary alone: a row's result does not depend on its batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work

CHUNK = 4096
"""Logits that a program holds at a time, of one row or of several."""
STATS_WARPS = 4
DRAW_WARPS = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 8}
"""As many as let a thread load 16 bytes or more at a time and keep its sums in registers."""
KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""Upper bits of a float32's ordered key (see :func:`_key`) in which two logits of a type can differ, made even."""


@triton.jit
def _key(z):
    """An unsigned number that orders as ``z`` does: sign bit turned over, negative numbers whole; -0 counts as 0."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ -0x80000000).to(tl.uint32, bitcast=True)


@triton.jit
def _stats(
    logits, temperature, stats, B, V, stride, chunks, ROWS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Of each chunk: largest logit m, sum of exp(z - m) and sum of exp((z - m) / temperature), in ``stats``
    [3, B, chunks]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place = logits + tl.minimum(rows, B - 1).to(tl.int64)[:, None] * stride + at[None, :]
    z = tl.load(place, mask=(at < V)[None, :], other=float("-inf")).to(tl.float32)
    top = tl.max(z, 1)
    # A chunk of -inf only has no weight: counted from 0 it sums to that.
    z -= tl.where(top == float("-inf"), 0.0, top)[:, None]
    heat = tl.load(temperature + rows, mask=rows < B, other=1.0)
    inverse = 1.0 / tl.maximum(heat, 1e-30)
    out = stats + rows * chunks + tl.program_id(1)
    tl.store(out, top, mask=rows < B)
    tl.store(out + B * chunks, tl.sum(tl.exp(z), 1), mask=rows < B)
    tl.store(out + 2 * B * chunks, tl.sum(tl.exp(z * inverse[:, None]), 1), mask=rows < B)


@triton.jit
def _weights(row_logits, at, V, top, inverse, floor):
    """Keys and weights ``[ROWS, CHUNK]`` of the logits at ``at``; a weight below the key ``floor`` is 0, and so are
    both past the end."""
    z = tl.load(row_logits[:, None] + at, mask=at < V, other=float("-inf")).to(tl.float32)
    key = tl.where(at < V, _key(z), 0)
    return key, tl.where(key >= floor[:, None], tl.exp((z - top[:, None]) * inverse[:, None]), 0.0)


@triton.jit
def _any(condition):
    return tl.max(condition.to(tl.int32), 0) > 0


@triton.jit
def _sums(
    row_logits, tops, V, chunks, top, inverse, floor,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, MOST_CHUNKS: tl.constexpr,
):  # fmt: skip
    """Each chunk's weight of keys from ``floor`` on."""
    sums = tl.zeros((ROWS, MOST_CHUNKS), tl.float32)
    each = tl.arange(0, MOST_CHUNKS)
    for chunk in range(chunks):
        if _any(_key(tl.load(tops + chunk)) >= floor):
            at = chunk * CHUNK + tl.arange(0, CHUNK)[None, :]
            _, weight = _weights(row_logits, at, V, top, inverse, floor)
            sums = tl.where((each == chunk)[None, :], tl.sum(weight, 1)[:, None], sums)
    return sums


@triton.jit
def _threshold(
    row_logits, tops, V, chunks, top, inverse, floor, need,
    BY_MASS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, KEY_BITS: tl.constexpr,
):  # fmt: skip
    """The largest key from which on there are ``need`` logits, or if BY_MASS ``need`` of weight. A sum of fewer terms
    in the same order is never larger, so that the search is exact."""
    found = tl.zeros((ROWS,), tl.uint32)
    for step in range(KEY_BITS // 2):
        unit = tl.full((ROWS,), 1, tl.uint32) << tl.cast(30 - 2 * step, tl.uint32)
        one, two, three = found + unit, found + 2 * unit, found + 3 * unit
        above_one = tl.zeros((ROWS, CHUNK), tl.float32)
        above_two = tl.zeros((ROWS, CHUNK), tl.float32)
        above_three = tl.zeros((ROWS, CHUNK), tl.float32)
        for chunk in range(chunks):
            if _any(_key(tl.load(tops + chunk)) >= one):
                at = chunk * CHUNK + tl.arange(0, CHUNK)[None, :]
                key, value = _weights(row_logits, at, V, top, inverse, floor)
                if not BY_MASS:
                    value = tl.full((ROWS, CHUNK), 1.0, tl.float32)
                above_one += tl.where(key >= one[:, None], value, 0.0)
                above_two += tl.where(key >= two[:, None], value, 0.0)
                above_three += tl.where(key >= three[:, None], value, 0.0)
        found = tl.where(tl.sum(above_one, 1) >= need, one, found)
        found = tl.where(tl.sum(above_two, 1) >= need, two, found)
        found = tl.where(tl.sum(above_three, 1) >= need, three, found)
    return found


@triton.jit
def _first(hit, usable, index, END: tl.constexpr):
    """The first index that is hit; rounding may leave none: then the last usable one, or 0 in a row of NaN."""
    first = tl.min(tl.where(hit & usable, index, END), 1)
    last = tl.maximum(tl.max(tl.where(usable, index, -1), 1), 0)
    return tl.where(first == END, last, first)


@triton.jit
def _invert(
    row_logits, sums, V, top, inverse, floor, u, CHUNK: tl.constexpr, MOST_CHUNKS: tl.constexpr
):  # fmt: skip
    """The first token whose cumulated weight exceeds ``u`` times all weight, and that total; ``sums`` holds the
    chunks' weights. Scans may round unevenly: only what has some weight is ever taken."""
    each = tl.arange(0, MOST_CHUNKS)[None, :]
    total = tl.sum(sums, 1)
    goal = u * total
    chunk = _first(tl.cumsum(sums, 1) > goal[:, None], sums > 0, each, MOST_CHUNKS)
    goal -= tl.sum(tl.where(each < chunk[:, None], sums, 0.0), 1)
    within = tl.arange(0, CHUNK)[None, :]
    _, weight = _weights(row_logits, chunk[:, None] * CHUNK + within, V, top, inverse, floor)
    token = chunk * CHUNK + _first(tl.cumsum(weight, 1) > goal[:, None], weight > 0, within, CHUNK)
    return token, total


@triton.jit
def _draw(
    logits, uniforms, temperature, top_k, top_p, stats, tokens, plain, sampled, B, V, stride, chunks,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, MOST_CHUNKS: tl.constexpr, KEY_BITS: tl.constexpr,
):  # fmt: skip
    """Draw the tokens of ROWS rows from the chunks' statistics. Rows past the end repeat the last one."""
    program_rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(program_rows, B - 1)
    row_logits = logits + rows.to(tl.int64) * stride
    heat, k, share = tl.load(temperature + rows), tl.load(top_k + rows), tl.load(top_p + rows)
    tops = stats + rows * chunks
    each = tl.arange(0, MOST_CHUNKS)[None, :]
    chunk_tops = tl.load(tops[:, None] + each, mask=each < chunks, other=float("-inf"))
    top = tl.max(chunk_tops, 1)
    fall = chunk_tops - top[:, None]
    plain_sums = tl.load(tops[:, None] + B * chunks + each, mask=each < chunks, other=0.0)
    plain_total = tl.sum(plain_sums * tl.exp(fall), 1)
    token = tl.zeros((ROWS,), tl.int32)
    inverse = 1.0 / tl.maximum(heat, 1e-30)
    log_total = tl.zeros((ROWS,), tl.float32)
    if _any(heat > 0):
        floor = tl.zeros((ROWS,), tl.uint32)
        limited = (k > 0) & (k < V) & (heat > 0)
        if _any(limited):
            found = _threshold(
                row_logits, tops, V, chunks, top, inverse, floor, k, False, ROWS, CHUNK, KEY_BITS
            )
            floor = tl.where(limited, found, floor)
        sums = tl.load(tops[:, None] + 2 * B * chunks + each, mask=each < chunks, other=0.0)
        sums *= tl.exp(fall * inverse[:, None])
        if _any((share < 1) & (heat > 0)):
            held = tl.sum(
                _sums(row_logits, tops, V, chunks, top, inverse, floor, ROWS, CHUNK, MOST_CHUNKS), 1
            )
            found = _threshold(
                row_logits, tops, V, chunks, top, inverse, floor, share * held, True, ROWS, CHUNK, KEY_BITS
            )
            floor = tl.where(share < 1, tl.maximum(found, floor), floor)
        if _any(floor > 0):
            kept = _sums(row_logits, tops, V, chunks, top, inverse, floor, ROWS, CHUNK, MOST_CHUNKS)
            sums = tl.where((floor > 0)[:, None], kept, sums)
        u = tl.load(uniforms + rows)
        token, total = _invert(row_logits, sums, V, top, inverse, floor, u, CHUNK, MOST_CHUNKS)
        log_total = tl.log(total)
    if _any(heat == 0):
        chunk = _first(chunk_tops == top[:, None], each < chunks, each, MOST_CHUNKS)
        within = tl.arange(0, CHUNK)[None, :]
        at = chunk[:, None] * CHUNK + within
        z = tl.load(row_logits[:, None] + at, mask=at < V, other=float("-inf")).to(tl.float32)
        largest = chunk * CHUNK + _first(z == top[:, None], at < V, within, CHUNK)
        token = tl.where(heat == 0, largest, token)
    z = tl.load(row_logits + token).to(tl.float32) - top
    live = program_rows < B
    tl.store(tokens + rows, token.to(tl.int64), mask=live)
    tl.store(plain + rows, z - tl.log(plain_total), mask=live)
    tl.store(sampled + rows, tl.where(heat == 0, 0.0, z * inverse - log_total), mask=live)


def sample_triton(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.sample.sample`; each setting a number or one a row."""
    logits, uniforms = logits if logits.stride(1) == 1 else logits.contiguous(), uniforms.contiguous()
    rows, vocab = logits.shape
    heat = _a_row(temperature, rows, torch.float32, logits.device)
    # More than all is all; what does not fit 32 bits is.
    most = top_k.clamp(max=vocab) if isinstance(top_k, Tensor) else min(top_k, vocab)
    most = _a_row(most, rows, torch.int32, logits.device)
    share = _a_row(top_p, rows, torch.float32, logits.device)
    block = _block(vocab)
    chunks = triton.cdiv(vocab, block["CHUNK"])
    stats = torch.empty((3, rows, chunks), dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    plain, sampled = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    if rows:
        programs = triton.cdiv(rows, block["ROWS"])
        sizes = (rows, vocab, logits.stride(0), chunks)
        _stats[(programs, chunks)](logits, heat, stats, *sizes, **block, num_warps=STATS_WARPS, **FUSION)
        _draw[(programs,)](
            logits, uniforms, heat, most, share, stats, tokens, plain, sampled, *sizes, **block,
            MOST_CHUNKS=triton.next_power_of_2(chunks), KEY_BITS=KEY_BITS[logits.dtype],
            num_warps=DRAW_WARPS[logits.dtype], **FUSION,
        )  # fmt: skip
    return tokens, plain, sampled


def _block(vocab: int) -> dict[str, int]:
    chunk = min(CHUNK, triton.next_power_of_2(vocab))
    return {"ROWS": CHUNK // chunk, "CHUNK": chunk}


def _a_row(setting: float | Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(setting, Tensor):
        return setting.to(device=device, dtype=dtype).contiguous()
    return torch.full((rows,), setting, dtype=dtype, device=device)


REGISTER_BUDGET = {4: 128, 8: 255, 16: 128}
"""By the warps of a program. With 16 warps 128 is all that the 65,536 registers of a multiprocessor give."""


def _case(kernel: Any, dtype: torch.dtype, vocab: int) -> CompileCase:
    name, data = kernel.__name__.lstrip("_"), f"*{TYPE_NAMES[dtype]}"
    signature = {"logits": data, "temperature": "*fp32", "stats": "*fp32"}
    signature |= {"B": "i32", "V": "i32:16", "stride": "i32:16", "chunks": "i32"}
    constexprs: dict[str, Any] = dict(_block(vocab))
    if name == "draw":
        signature |= {"uniforms": "*fp32", "top_k": "*i32", "top_p": "*fp32", "tokens": "*i64"}
        signature |= {"plain": "*fp32", "sampled": "*fp32"}
        chunks = triton.next_power_of_2(triton.cdiv(vocab, constexprs["CHUNK"]))
        constexprs |= {"MOST_CHUNKS": chunks, "KEY_BITS": KEY_BITS[dtype]}
    warps = DRAW_WARPS[dtype] if name == "draw" else STATS_WARPS
    launch = warps, 3, REGISTER_BUDGET[warps]
    return CompileCase(f"sample.{name}/V={vocab}", TYPE_NAMES[dtype], kernel, signature, constexprs, *launch)


COMPILE_CASES = [
    *(_case(kernel, dtype, 262_144) for kernel in (_stats, _draw) for dtype in TYPE_NAMES),
    _case(_stats, torch.float32, 128), _case(_draw, torch.float32, 128),
]  # fmt: skip


def work(rows: int, vocab: int, itemsize: int, filtered: bool) -> Work:
    """Of both kernels; ``filtered``: with top-p, and no chunk passed over. Weights count as one operation."""
    table = rows * vocab * itemsize
    chunk = _block(vocab)["CHUNK"]
    walks = 2 + 8 * itemsize // 2 if filtered else chunk / vocab
    small = rows * (8 + 4 + 4 + 12) + 3 * 4 * 2 * rows * triton.cdiv(vocab, chunk)
    needed = rows * vocab * (3 if filtered else 2)
    return Work(
        "sample with top-p" if filtered else "sample", f"B={rows} V={vocab} itemsize={itemsize}",
        table + rows * 28, table * (1 + walks) + small, needed, rows * vocab * (2 + walks * 4),
    )  # fmt: skip


WORK = [work(64, 49_152, 2, filtered) for filtered in (False, True)] + [work(64, 128_256, 2, False)]
