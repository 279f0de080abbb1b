"""Memory for packed weights, in pages as large as the system has them.

A decode step of few rows reads every weight once and does little else. In pages of 4 KiB a core looks up a new page
every 64 cache lines and reaches little more than half of the speed that it has in pages of 2 MiB. Linux gives the
large ones to whoever asks, for whole ones only, so weights of a few hundred kilobytes must lie together.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

CHUNK = 32 << 20
"""Bytes that are taken at a time; what no weight is written to takes no memory."""
ALIGNMENT = 64

_free = torch.empty(0, dtype=torch.uint8)
"""What is left of the newest chunk; a chunk goes back to the system with the last tensor in it."""


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """``[count]`` elements that hold zeros or nothing in particular, at a multiple of :data:`ALIGNMENT` bytes."""
    global _free
    size = count * dtype.itemsize
    whole = math.ceil(size / ALIGNMENT) * ALIGNMENT
    if whole > len(_free):
        _free = _chunk(max(CHUNK, whole))
    taken, _free = _free[:size], _free[whole:]
    return taken.view(dtype)


def _chunk(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
