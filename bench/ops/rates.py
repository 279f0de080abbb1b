"""What this machine can do at best, measured in the run that uses it: the floors that benchmarks stand beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from sftrl_fast.ops.linear import linear, pack_linear

COPY_ELEMENTS = 32 << 20
PRODUCT = (1024, 1024, 2048)
"""Rows, K and N of the product that stands for the matrix rate."""


def copy_bandwidth() -> float:
    """Bytes a second of a large copy, read and written ones counted."""
    source, target = torch.zeros(COPY_ELEMENTS), torch.ones(COPY_ELEMENTS)
    return 2 * source.numel() * source.itemsize / _best_seconds(lambda: target.copy_(source))


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large product, by the fastest that is here: torch's own or ours."""
    rows, k, n = PRODUCT
    x, weight = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    packed = [pack_linear(weight, impl=impl) for impl in ("torch", "cpp")]
    return 2 * rows * k * n / min(_best_seconds(partial(linear, x, p)) for p in packed)


def _best_seconds(run: Callable[[], object], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
