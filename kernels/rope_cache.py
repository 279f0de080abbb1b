"""``rope_cache`` on the GPU: a program a token rotates all its heads and writes them where they belong."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work

WARPS = 4


@triton.jit
def _rotate(x, heads, half, c, s, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Both halves of the rotated heads of one token; each product is rounded to the type."""
    head, at = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    live = (head < heads) & (at < half)
    first = tl.load(x + head * 2 * half + at, mask=live, other=0.0)
    second = tl.load(x + head * 2 * half + half + at, mask=live, other=0.0)
    kind = first.dtype
    a, b = first.to(tl.float32), second.to(tl.float32)
    left = (a * c).to(kind).to(tl.float32) - (b * s).to(kind).to(tl.float32)
    right = (b * c).to(kind).to(tl.float32) + (a * s).to(kind).to(tl.float32)
    return left.to(kind), right.to(kind)


@triton.jit
def _rope_cache(
    q, k, v, cos, sin, positions, slots, k_cache, v_cache, out,
    stride_q, stride_k, stride_v, q_heads, kv_heads, half, page,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, HALF)[None, :]
    place = tl.load(positions + token) * half + at
    c = tl.load(cos + place, mask=at < half, other=0.0).to(tl.float32)
    s = tl.load(sin + place, mask=at < half, other=0.0).to(tl.float32)
    left, right = _rotate(q + token * stride_q, q_heads, half, c, s, Q_HEADS, HALF)
    head = tl.arange(0, Q_HEADS)[:, None]
    target = (token * q_heads + head) * 2 * half + at
    live = (head < q_heads) & (at < half)
    tl.store(out + target, left, mask=live)
    tl.store(out + target + half, right, mask=live)
    slot = tl.load(slots + token)
    if slot >= 0:
        k_left, k_right = _rotate(k + token * stride_k, kv_heads, half, c, s, KV_HEADS, HALF)
        kv_head = tl.arange(0, KV_HEADS)[:, None]
        kept = (kv_head < kv_heads) & (at < half)
        place_in_cache = ((slot // page * kv_heads + kv_head) * page + slot % page) * 2 * half + at
        tl.store(k_cache + place_in_cache, k_left, mask=kept)
        tl.store(k_cache + place_in_cache + half, k_right, mask=kept)
        source = v + token * stride_v + kv_head * 2 * half + at
        tl.store(v_cache + place_in_cache, tl.load(source, mask=kept), mask=kept)
        tl.store(v_cache + place_in_cache + half, tl.load(source + half, mask=kept), mask=kept)


def rope_cache_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.rope_cache.rope_cache`."""
    q, k, v = (_dense_tokens(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel():
        tokens, q_heads, width = q.shape
        kv_heads, page = k_cache.shape[1:3]
        _rope_cache[(tokens,)](
            q, k, v, cos.contiguous(), sin.contiguous(), positions.contiguous(), slots.contiguous(),
            k_cache, v_cache, out, q.stride(0), k.stride(0), v.stride(0), q_heads, kv_heads, width // 2, page,
            **_block(q_heads, kv_heads, width // 2), num_warps=WARPS, **FUSION,
        )  # fmt: skip
    return out


def _dense_tokens(x: Tensor) -> Tensor:
    """``x`` with the heads of a token one after another; tokens may be apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _block(q_heads: int, kv_heads: int, half: int) -> dict[str, int]:
    sizes = {"Q_HEADS": q_heads, "KV_HEADS": kv_heads, "HALF": half}
    return {name: triton.next_power_of_2(size) for name, size in sizes.items()}


REGISTER_BUDGET = 128


def _case(name: str, q_heads: int, kv_heads: int, half: int) -> CompileCase:
    data = dict.fromkeys(("q", "k", "v", "cos", "sin", "k_cache", "v_cache", "out"), f"*{name}")
    whole = dict.fromkeys(("stride_q", "stride_k", "stride_v", "half", "page"), "i32:16")
    signature = data | whole | {"positions": "*i64", "slots": "*i64", "q_heads": "i32", "kv_heads": "i32"}
    return CompileCase(
        f"rope_cache/Hq={q_heads} Hkv={kv_heads} Dh={2 * half}", name, _rope_cache, signature,
        _block(q_heads, kv_heads, half), WARPS, 3, REGISTER_BUDGET,
    )  # fmt: skip


COMPILE_CASES = [_case(name, *heads) for name in TYPE_NAMES.values() for heads in ((9, 3, 32), (32, 8, 64))]


def work(tokens: int, q_heads: int, kv_heads: int, width: int, itemsize: int) -> Work:
    """Every token is kept; each reads its own row of the tables."""
    moved = tokens * (2 * (q_heads + 2 * kv_heads) * width * itemsize + width * itemsize + 16)
    rotated = 3 * tokens * (q_heads + kv_heads) * width
    blocks = _block(q_heads, kv_heads, width // 2)
    done = 3 * tokens * (blocks["Q_HEADS"] + blocks["KV_HEADS"]) * 2 * blocks["HALF"]
    shape = f"T={tokens} Hq={q_heads} Hkv={kv_heads} Dh={width} itemsize={itemsize}"
    return Work("rope_cache", shape, moved, moved, rotated, done)


WORK = [work(64, 9, 3, 64, 2), work(2048, 32, 8, 128, 2)]
