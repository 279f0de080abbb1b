"""Attention over a paged cache against torch's SDPA over the expanded one, and against the bytes that must move."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rates import copy_bandwidth, matrix_rate

from harness import MEBIBYTE, Bench, machine_device
from sftrl_fast.ops.attention import CacheRows, cached_attention
from sftrl_fast.ops.dispatch import availability

DEVICE = machine_device()
HEADS, KV_HEADS, WIDTH = 9, 3, 64
LAYERS = 16
"""Caches that a side walks through, one a run: a decode step finds the last layer's cache in memory, not near."""


@dataclass(frozen=True)
class Work:
    """``groups`` prefixes of ``prefix`` tokens, each of ``members`` sequences with ``own`` tokens."""

    groups: int
    members: int
    prefix: int
    own: int
    queries: int = 1
    page: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def sequences(self) -> int:
        return self.groups * self.members

    def bytes_moved(self) -> float:
        """Each prefix once, own tokens, queries and results."""
        cache = 2 * KV_HEADS * (self.groups * self.prefix + self.sequences * self.own)
        return (cache + 2 * HEADS * self.sequences * self.queries) * WIDTH * self.dtype.itemsize

    def operations(self) -> float:
        """Of both products, two a multiplication and addition; pairs that causality forbids are left out."""
        seen = self.prefix + self.own - (self.queries - 1) / 2
        return 4 * HEADS * WIDTH * self.sequences * self.queries * seen


def rows(work: Work) -> tuple[CacheRows, int]:
    """Tables with pages at random places, and the number of pages."""
    counts = [-(-n // work.page) for n in (work.prefix, work.own)]
    pages = work.groups * counts[0] + work.sequences * counts[1]
    prefix, own = (
        torch.randperm(pages, device=DEVICE)
        .int()
        .split([work.groups * counts[0], work.sequences * counts[1]])
    )
    table = CacheRows(
        query_offsets=torch.arange(work.sequences + 1, device=DEVICE).mul(work.queries).int(),
        prefix_of=torch.arange(work.groups, device=DEVICE).repeat_interleave(work.members).int(),
        prefix_pages=prefix.view(work.groups, counts[0]).contiguous(),
        prefix_lengths=torch.full((work.groups,), work.prefix, device=DEVICE).int(),
        own_pages=own.view(work.sequences, counts[1]).contiguous(),
        own_lengths=torch.full((work.sequences,), work.own, device=DEVICE).int(),
    )
    table.check(work.sequences * work.queries, pages, work.page)
    return table, pages


def paged_sides(work: Work) -> dict[str, Callable[[], object]]:
    table, pages = rows(work)
    q = torch.randn(work.sequences * work.queries, HEADS, WIDTH, device=DEVICE).to(work.dtype)
    shape = (2, pages, KV_HEADS, work.page, WIDTH)
    caches = [torch.randn(shape, device=DEVICE).to(work.dtype) for _ in range(LAYERS)]

    def side(impl: str) -> Callable[[], object]:
        layers: Iterator[Tensor] = cycle(caches)

        def run() -> Tensor:
            k, v = next(layers)
            return cached_attention(q, k, v, table, scale=WIDTH**-0.5, impl=impl)

        return run

    return {row.impl: side(row.impl) for row in availability("cached_attention", q) if row.available}


def sdpa(work: Work, layers: int) -> Callable[[], object]:
    """The same attention where each sequence and head holds all its keys and values; queries fit the end."""
    length = work.prefix + work.own
    q = torch.randn(work.sequences, HEADS, work.queries, WIDTH, device=DEVICE).to(work.dtype)
    shape = (2, work.sequences, HEADS, length, WIDTH)
    caches = cycle([torch.randn(shape, device=DEVICE).to(work.dtype) for _ in range(layers)])
    causal = work.queries > 1
    if causal and work.queries != length:
        raise ValueError("SDPA's causal mask needs as many queries as keys")

    def run() -> Tensor:
        k, v = next(caches)
        return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return run


def timed(
    bench: Bench, case: str, metric: str, sides: dict[str, Callable[[], object]], repeat: int
) -> dict[str, float]:
    """Median seconds of each side; the first is what ratios are against."""
    first = len(bench.rows)
    bench.compare(case, metric, "ms", sides, ratio_to=next(iter(sides)), scale="ms", repeat=repeat, warmup=3)
    rows = [row for row in bench.rows[first:] if row.metric == metric]
    return {row.impl: row.value / 1e3 for row in rows if row.value is not None}


@dataclass(frozen=True)
class Machine:
    """What this machine reaches, measured in this run."""

    bandwidth: float
    """Of a copy, bytes read and bytes written, a second."""
    rates: dict[torch.dtype, float]
    """Of a large matrix product, operations a second."""


def measure_machine(bench: Bench) -> Machine:
    bandwidth = copy_bandwidth(DEVICE)
    bench.value("machine", "torch", "copy bandwidth", bandwidth / 1e9, "GB/s")
    rates = {dtype: matrix_rate(dtype, DEVICE) for dtype in (torch.bfloat16, torch.float32)}
    for dtype, rate in rates.items():
        bench.value(f"machine, {dtype}", "torch", "matmul rate", rate / 1e9, "GFLOP/s")
    return Machine(bandwidth, rates)


def measure(bench: Bench, machine: Machine, case: str, metric: str, work: Work, repeat: int) -> None:
    """All sides of a case; then how much of the floors each reaches."""
    seconds = timed(bench, case, metric, {"sdpa": sdpa(work, 4), **paged_sides(work)}, repeat)
    memory = work.bytes_moved() / machine.bandwidth
    arithmetic = work.operations() / machine.rates[work.dtype]
    bench.value(case, "floor", "bytes that must move", work.bytes_moved() / MEBIBYTE, "MiB")
    bench.value(case, "floor", "time of the bytes", memory * 1e3, "ms")
    bench.value(case, "floor", "time of the operations", arithmetic * 1e3, "ms")
    for impl, spent in seconds.items():
        if impl != "sdpa":  # it moves an expanded cache
            bench.value(case, impl, "fraction of copy bandwidth", memory / spent, "1")
            bench.value(case, impl, "fraction of matmul rate", arithmetic / spent, "1")


def main() -> None:
    bench = Bench("cached_attention", "Decode and prefill attention over a paged cache with shared prefixes")
    torch.manual_seed(0)
    groups, repeat = (2, 5) if bench.args.quick else (8, 15)
    machine = measure_machine(bench)
    for page in (16, 32, 64):
        case = f"{8 * groups} rows, groups of 8, page {page}"
        measure(bench, machine, case, "decode_time", Work(groups, 8, 130, 64, page=page), repeat)
    single = Work(groups, 8, 130, 64, dtype=torch.float32)
    measure(
        bench, machine, f"{8 * groups} rows, groups of 8, page 16, float32", "decode_time", single, repeat
    )
    measure(bench, machine, "1 row, 2,000 tokens", "decode_time", Work(1, 1, 0, 2000), repeat)
    measure(
        bench,
        machine,
        f"prefill, {groups} x 130 tokens",
        "prefill_time",
        Work(groups, 1, 0, 130, 130),
        repeat,
    )
    bench.finish()


if __name__ == "__main__":
    main()
