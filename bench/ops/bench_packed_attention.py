"""Training attention over groups of answers that share a prompt: shared and unshared rows, and torch's SDPA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth, matrix_rate

from harness import Bench, machine_device
from sftrl_fast.ops.attention import PackedRows, packed_attention
from sftrl_fast.ops.dispatch import availability

DEVICE = machine_device()

QUERY_HEADS, KV_HEADS, WIDTH = 9, 3, 64
"""SmolLM2-135M's."""


@dataclass(frozen=True)
class Case:
    """``groups`` prompts of ``prompt`` tokens with ``answers`` answers of ``answer`` tokens each."""

    groups: int
    answers: int
    prompt: int
    answer: int

    def shared(self) -> PackedRows:
        """Each prompt once, its answers its children."""
        lengths, parents = [], []
        for _ in range(self.groups):
            parents += [-1] + [len(parents)] * self.answers
            lengths += [self.prompt] + [self.answer] * self.answers
        return _rows(lengths, parents)

    def unshared(self) -> PackedRows:
        """Each answer behind a copy of its prompt."""
        rows = self.groups * self.answers
        return _rows([self.prompt + self.answer] * rows, [-1] * rows)

    def operations(self) -> tuple[float, float]:
        """Of forward and backward, shared and unshared: two products forward, five backward, causal pairs only."""
        own, row = _pairs(self.answer), self.prompt + self.answer
        shared = _pairs(self.prompt) + self.answers * (own + self.answer * self.prompt)
        each = 7 * 2 * WIDTH * QUERY_HEADS * self.groups
        return each * shared, each * self.answers * _pairs(row)

    def bytes_moved(self, itemsize: int) -> tuple[float, float]:
        """Of forward and backward, shared and unshared: what each must read and write once."""
        shared = self.groups * (self.prompt + self.answers * self.answer)
        unshared = self.groups * self.answers * (self.prompt + self.answer)
        # Forward: q, k, v in, out and a float32 sum out. Backward: those and out's gradient in, three gradients out.
        each = (6 * QUERY_HEADS + 6 * KV_HEADS) * WIDTH * itemsize + 2 * QUERY_HEADS * 4
        return each * shared, each * unshared


CASES = {
    "8 x 8 answers of 60 on 130": Case(8, 8, 130, 60),
    "8 x 8 answers of 200 on 130": Case(8, 8, 130, 200),
    "2 x 16 answers of 64 on 512": Case(2, 16, 512, 64),
    "16 rows of 512, nothing shared": Case(16, 1, 448, 64),
}


def _pairs(length: int) -> float:
    return length * (length + 1) / 2


def _rows(lengths: list[int], parents: list[int]) -> PackedRows:
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    return PackedRows(offsets, torch.tensor(parents, dtype=torch.int32, device=DEVICE))


def ours(rows: PackedRows, dtype: torch.dtype, impl: str) -> Callable[[], object]:
    """Forward and backward over packed rows."""
    tokens = int(rows.offsets[-1])
    q, k, v, grad = (
        torch.randn(tokens, heads, WIDTH, dtype=dtype, device=DEVICE, requires_grad=True)
        for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS, QUERY_HEADS)
    )

    def run() -> object:
        out = packed_attention(q, k, v, rows, scale=WIDTH**-0.5, impl=impl)
        return torch.autograd.grad(out, (q, k, v), grad)

    return run


def sdpa(rows: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    """torch's own over unshared rows of one length, so without padding; its fused path."""
    shapes = ((rows, heads, length, WIDTH) for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS, QUERY_HEADS))
    q, k, v, grad = (torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for shape in shapes)

    def run() -> object:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(out, (q, k, v), grad)

    return run


@dataclass(frozen=True)
class Machine:
    """What this machine reaches in the run: operations and bytes a second, for elements of ``itemsize`` bytes."""

    rate: float
    bandwidth: float
    itemsize: int


def floors(
    bench: Bench, label: str, case: Case, machine: Machine, impls: list[str], seconds: dict[str, float]
) -> None:
    """Rows of the least time by operations and by bytes, the part of it reached, and the operations saved."""
    operations, moved = case.operations(), case.bytes_moved(machine.itemsize)
    for rows, flops, size in zip(("", " unshared"), operations, moved, strict=True):
        least = {"operations": flops / machine.rate, "bytes": size / machine.bandwidth}
        for what, value in least.items():
            bench.value(label, f"floor{rows}", f"{what} over the measured rate", value * 1e3, "ms")
        for impl in impls:
            reached = max(least.values()) / seconds[impl + rows]
            bench.value(label, impl + rows, "part of the floor reached", reached, "")
    bench.value(label, "operations", "unshared / shared", operations[1] / operations[0], "")


def main() -> None:
    bench = Bench("packed_attention", "Forward and backward of attention over answers that share a prompt")
    bench.missing(
        "torch nested tensors", "their scaled_dot_product_attention has no CPU backward over ragged rows"
    )
    bandwidth = copy_bandwidth(DEVICE)
    for dtype in (torch.bfloat16, torch.float32):
        rate = matrix_rate(dtype, DEVICE)
        probe = torch.zeros(1, dtype=dtype, device=DEVICE)
        impls = [row.impl for row in availability("packed_attention", probe) if row.available]
        fast = [impl for impl in impls if impl != "torch"]
        for name, case in list(CASES.items())[: 1 if bench.args.quick else None]:
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            sides = {impl: ours(case.shared(), dtype, impl) for impl in impls}
            sides |= {f"{impl} unshared": ours(case.unshared(), dtype, impl) for impl in fast}
            sides["torch SDPA unshared"] = sdpa(case.groups * case.answers, case.prompt + case.answer, dtype)
            base = f"{fast[0]} unshared"
            seconds = bench.compare(label, "train_time", "ms", sides, ratio_to=base, scale="ms")
            floors(bench, label, case, Machine(rate, bandwidth, dtype.itemsize), fast, seconds)
    bench.finish()


if __name__ == "__main__":
    main()
