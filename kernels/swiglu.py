"""``swiglu`` on the GPU: one read of both halves, one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work, padded

BLOCK, WARPS = 1024, 4
"""Columns of a program: 16 bytes a thread and half in a 16-bit type."""


@triton.jit
def _swiglu(gate_up, out, F, stride, BLOCK: tl.constexpr):
    """A stretch of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * stride + at, mask=at < F, other=0.0)
    up = tl.load(gate_up + row * stride + F + at, mask=at < F, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * F + at, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=at < F)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.swiglu.swiglu`."""
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        _swiglu[grid](gate_up, out, width, gate_up.stride(0), BLOCK=BLOCK, num_warps=WARPS, **FUSION)
    return out


REGISTER_BUDGET = 64

COMPILE_CASES = [
    CompileCase(
        "swiglu", name, _swiglu,
        {"gate_up": f"*{name}", "out": f"*{name}", "F": "i32:16", "stride": "i32:16"},
        {"BLOCK": BLOCK}, WARPS, 3, REGISTER_BUDGET,
    )
    for name in TYPE_NAMES.values()
]  # fmt: skip


def work(rows: int, width: int, itemsize: int) -> Work:
    """The exponential counts as one operation."""
    moved = 3 * rows * width * itemsize
    return Work(
        "swiglu", f"T={rows} F={width} itemsize={itemsize}", moved, moved, 5 * rows * width,
        5 * rows * padded(width, BLOCK),
    )  # fmt: skip


WORK = [work(64, 1536, 2), work(2048, 1536, 2)]
