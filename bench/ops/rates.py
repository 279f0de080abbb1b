"""What this machine can do at best, measured in the run that uses it: the floors that benchmarks stand beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from sftrl_fast.ops.linear import linear, pack_linear

COPY_ELEMENTS = {"cpu": 32 << 20, "cuda": 256 << 20}
PRODUCT = {"cpu": (1024, 1024, 2048), "cuda": (8192, 8192, 8192)}
"""Rows, K and N of the product that stands for the matrix rate: enough to fill the machine."""


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written ones counted."""
    elements = COPY_ELEMENTS[device.type]
    source, target = torch.zeros(elements, device=device), torch.ones(elements, device=device)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large product, by the fastest that is here: torch's own or ours."""
    rows, k, n = PRODUCT[device.type]
    x, weight = torch.randn(rows, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    impls = ("torch", "cpp") if device.type == "cpu" else ("torch",)
    packed = [pack_linear(weight, impl=impl) for impl in impls]
    return 2 * rows * k * n / min(_best_seconds(partial(linear, x, p), device) for p in packed)


def _best_seconds(run: Callable[[], object], device: torch.device, repeat: int = 5) -> float:
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
