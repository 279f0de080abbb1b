"""Products with packed weights of SmolLM2-135M's shapes: ours, oneDNN's packed path, and torch's linear."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth, matrix_rate

from harness import Bench
from sftrl_fast.ops.linear import linear, pack_linear

SHAPES = {
    "qkv": (576, 960),
    "attention out": (576, 576),
    "gate and up": (576, 3072),
    "down": (1536, 576),
    "vocabulary": (576, 49152),
}
"""K x N."""
ROWS = (1, 16, 64, 128)
COLD_BYTES = 128 << 20
"""Weights are taken in turn from as many copies as no cache holds, as a model's layers are."""


def onednn(weights: list[torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """oneDNN's packed product, each weight laid out for this very number of rows."""
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, len(x)) for w in weights]

    def run() -> None:
        for weight in packed:
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    return run


def main() -> None:
    bench = Bench("linear", "Product with a packed weight that is not in any cache")
    quick = bench.args.quick
    cpu = torch.device("cpu")
    bandwidth = copy_bandwidth(cpu)
    for dtype in (torch.bfloat16, torch.float32):
        rate = matrix_rate(dtype, cpu)
        for name, (k, n) in SHAPES.items():
            if quick and name == "vocabulary":
                continue
            size = n * k * dtype.itemsize
            copies = 2 if quick else max(2, COLD_BYTES // size)
            weights = [torch.randn(n, k, dtype=dtype) for _ in range(copies)]
            ours = [pack_linear(weight, impl="cpp") for weight in weights]
            for rows in ROWS[:2] if quick else ROWS:
                x = torch.randn(rows, k, dtype=dtype)
                sides: dict[str, Callable[[], object]] = {
                    "torch": lambda x=x, weights=weights: [F.linear(x, w) for w in weights],
                    "cpp": lambda x=x, ours=ours: [linear(x, w) for w in ours],
                }
                if torch.backends.mkldnn.is_available():
                    sides["onednn"] = onednn(weights, x)
                else:
                    bench.missing("onednn", "torch was built without it")
                case = f"{name} {k}x{n} T={rows} {str(dtype).removeprefix('torch.')}"
                bench.compare(case, "time", "us", sides, per=copies, ratio_to="torch", repeat=7, scale="us")
                floor = max(size / bandwidth, 2 * rows * k * n / rate)
                bench.value(case, "floor", "time", floor * 1e6, "us")
    bench.finish()


if __name__ == "__main__":
    main()
