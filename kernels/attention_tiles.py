"""What both attention kernels are made of: tiles of ragged segments, and one step of the running softmax.

A tile of queries holds all query heads of one key head: its row r is token ``r // REPEAT``, head ``r % REPEAT``.
Scores are in powers of two: ``scale`` carries ``log2 e``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.core import UserError


def ragged_tiles(offsets: Tensor, total: int, repeat: int, block: int) -> Tensor:
    """int32 ``[programs, 2]``: the segment of a program (-1: none) and the first row of its block in that segment.

    Segment s has ``repeat * (offsets[s + 1] - offsets[s])`` rows, cut into blocks of ``block``; ``offsets`` ends with
    ``total``. The number of programs follows from the sizes alone, so nothing waits for the device.
    """
    segments = len(offsets) - 1
    counts = (offsets.diff() * repeat + (block - 1)) // block
    ends = counts.cumsum(0)
    most = min(total * repeat, total * repeat // block + segments)
    program = torch.arange(most, device=offsets.device)
    segment = torch.searchsorted(ends, program, right=True)
    before = (ends - counts)[segment.clamp(max=max(segments - 1, 0))]
    return torch.stack((torch.where(segment < segments, segment, -1), (program - before) * block), 1).int()


def dense_heads(x: Tensor) -> Tensor:
    """``x`` with the numbers of a head one after another; heads and tokens may be apart."""
    return x if x.stride(2) == 1 else x.contiguous()


def padded_head(dim: int) -> int:
    """Numbers of a head in a tile: a power of two. Raises :class:`UserError` over 256."""
    if dim > 256:
        raise UserError(f"q has Dh {dim}; needed: at most 256 for impl 'triton'")
    return max(16, triton.next_power_of_2(dim))


@triton.jit
def load_rows(
    source, begin, row, live, kv_head, stride, stride_head,
    REPEAT: tl.constexpr, DH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The rows ``row`` of a segment of ``source [T, Hq, Dh]`` that starts at token ``begin``; 0 if not ``live``."""
    at = tl.arange(0, WIDTH)
    head = kv_head * REPEAT + row % REPEAT
    place = source + (begin + row // REPEAT).to(tl.int64) * stride + head * stride_head
    return tl.load(place[:, None] + at[None, :], mask=live[:, None] & (at < DH)[None, :], other=0.0)


@triton.jit
def softmax_step(acc, top, total, q, k, v, seen, scale):
    """Bring a tile of keys into each row's largest score, sum of weights, and weighted sum of values.

    A row that has seen nothing yet, or only scores of -inf, has ``top`` -inf and no weight.
    """
    score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
    new_top = tl.maximum(top, tl.max(score, 1))
    level = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(score - level[:, None])
    decay = tl.exp2(top - level)
    acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, new_top, total * decay + tl.sum(weight, 1)
