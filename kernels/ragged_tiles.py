"""Which program of a grid takes which rows of ragged segments, found without asking the device for a length."""

from __future__ import annotations

from torch import Tensor, arange, searchsorted, stack, where


def ragged_tiles(offsets: Tensor, total: int, repeat: int, block: int) -> Tensor:
    """int32 ``[programs, 2]``: the segment of a program (-1: none) and the first row of its block in that segment.

    Segment s has ``repeat * (offsets[s + 1] - offsets[s])`` rows, cut into blocks of ``block``; ``offsets`` ends with
    ``total``. The number of programs follows from the sizes alone, so nothing waits for the device.
    """
    segments = len(offsets) - 1
    counts = (offsets.diff() * repeat + (block - 1)) // block
    ends = counts.cumsum(0)
    program = arange(min(total, total * repeat // block + segments), device=offsets.device)
    segment = searchsorted(ends, program, right=True)
    before = (ends - counts)[segment.clamp(max=max(segments - 1, 0))]
    return stack((where(segment < segments, segment, -1), (program - before) * block), 1).int()
