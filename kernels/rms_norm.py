"""``rms_norm`` on the GPU: a program a row, which stays in registers between the sum and the result."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work

WIDTH_A_WARP, MOST_WARPS = 512, 16
"""A thread holds 16 numbers, up to rows of 8,192."""


@triton.jit
def _rms_norm(
    x, residual, weight, out, total, D, stride_x, stride_residual, eps,
    BLOCK_D: tl.constexpr, WITH_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row; ``total`` gets the sum with the residual, rounded to the type before it is used on."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    live = at < D
    h = tl.load(x + row * stride_x + at, mask=live, other=0.0)
    if WITH_RESIDUAL:
        h += tl.load(residual + row * stride_residual + at, mask=live, other=0.0)
        tl.store(total + row * D + at, h, mask=live)
    wide = h.to(tl.float32)
    # One exactly rounded root and quotient a row: the approximate ones would be the largest error of all.
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(wide * wide, 0) / D + eps))
    normalised = (wide * scale).to(h.dtype).to(tl.float32)
    result = normalised * tl.load(weight + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * D + at, result.to(h.dtype), mask=live)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.rms_norm.rms_norm`."""
    x, weight = _dense_rows(x), weight.contiguous()
    residual = None if residual is None else _dense_rows(residual)
    rows, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = x if residual is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    other = x if residual is None else residual
    if rows:
        _rms_norm[(rows,)](
            x, other, weight, out, total, width, x.stride(0), other.stride(0), eps,
            BLOCK_D=triton.next_power_of_2(width), WITH_RESIDUAL=residual is not None,
            num_warps=_warps(width), **FUSION,
        )  # fmt: skip
    return out, total


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _warps(width: int) -> int:
    return min(MOST_WARPS, max(1, triton.next_power_of_2(width) // WIDTH_A_WARP))


REGISTER_BUDGET = 64
"""Rows of one warp then fill a multiprocessor."""


def _case(dtype: torch.dtype, width: int, with_residual: bool) -> CompileCase:
    signature: dict[str, str] = dict.fromkeys(
        ("x", "residual", "weight", "out", "total"), f"*{TYPE_NAMES[dtype]}"
    )
    signature |= {"D": "i32:16", "stride_x": "i32:16", "stride_residual": "i32:16", "eps": "fp32"}
    constexprs: dict[str, Any] = {"BLOCK_D": triton.next_power_of_2(width), "WITH_RESIDUAL": with_residual}
    name = f"rms_norm{'+residual' if with_residual else ''}/D={width}"
    return CompileCase(
        name, TYPE_NAMES[dtype], _rms_norm, signature, constexprs, _warps(width), 3, REGISTER_BUDGET
    )


COMPILE_CASES = [
    _case(dtype, width, with_residual)
    for dtype in TYPE_NAMES
    for width, with_residual in ((576, True), (8192, True), (576, False))
]


def work(rows: int, width: int, itemsize: int, with_residual: bool) -> Work:
    """The weight is read by every row, from the cache."""
    table = rows * width * itemsize * (4 if with_residual else 2)
    operations = rows * width * (5 if with_residual else 4)
    padded_operations = operations * triton.next_power_of_2(width) / width
    return Work(
        "rms_norm+residual" if with_residual else "rms_norm", f"T={rows} D={width} itemsize={itemsize}",
        table + width * itemsize, table + rows * width * itemsize, operations, padded_operations,
    )  # fmt: skip


WORK = [work(2048, 576, 2, True), work(64, 576, 2, True), work(2048, 4096, 2, True)]
