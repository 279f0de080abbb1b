"""Bytes and operations of the attention kernels, counted tile by tile, for batches of equal groups.

A product of a query with a key counts ``2 Dh`` operations, the softmax between two products nothing. In a group
``members`` sequences (answers) share a prefix (prompt).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sftrl_fast.kernels.compile_case import TYPE_NAMES, Work, padded


@dataclass(frozen=True, slots=True)
class Groups:
    """``groups`` prefixes of ``prefix`` tokens with ``members`` sequences each, of ``own`` tokens, the last
    ``queries`` of them queries."""

    groups: int
    members: int
    prefix: int
    own: int
    queries: int
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype

    def __str__(self) -> str:
        shape = f"{self.groups}x{self.members} P={self.prefix} R={self.own} new={self.queries}"
        return f"{shape} H={self.heads}/{self.kv_heads} Dh={self.dim} {TYPE_NAMES[self.dtype]}"

    @property
    def tokens(self) -> int:
        return self.groups * self.members * self.queries

    @property
    def numbers(self) -> int:
        """Bytes of one token's head."""
        return self.dim * self.dtype.itemsize


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _stops(own: int, queries: int, repeat: int, rows: int) -> list[int]:
    """The own keys that each tile of ``rows`` rows of one sequence sees."""
    before = own - queries
    return [
        before + min(queries, (first + rows - 1) // repeat + 1) for first in range(0, queries * repeat, rows)
    ]


def cached_work(at: Groups, launch: Mapping[str, Any]) -> Work:
    """By parts if ``launch`` has chunks, else whole."""
    sequences, repeat, whole = at.groups * at.members, at.heads // at.kv_heads, "CHUNK" not in launch
    seen = at.prefix + at.own - (at.queries - 1) / 2
    needed = (at.groups * at.prefix + sequences * at.own) * 2 * at.kv_heads + 2 * at.tokens * at.heads
    if whole:
        rows, stops = launch["ROWS"], _stops(at.own, at.queries, repeat, launch["ROWS"])
        keys = sequences * sum(at.prefix + stop for stop in stops)
        cells = sequences * rows * sum(padded(n, launch["KEYS"]) for stop in stops for n in (at.prefix, stop))
        extra = 2 * at.tokens * at.heads * at.numbers
    else:
        rows, stops = launch["OWN_ROWS"], _stops(at.own, at.queries, repeat, launch["OWN_ROWS"])
        tiles = at.groups * _blocks(at.members * at.queries * repeat, launch["GROUP_ROWS"])
        keys = tiles * at.prefix + sequences * sum(stops)
        cells = tiles * launch["GROUP_ROWS"] * padded(at.prefix, launch["KEYS"])
        cells += sequences * rows * sum(padded(stop, launch["KEYS"]) for stop in stops)
        chunks = _blocks(at.prefix, launch["CHUNK"]) + _blocks(at.own, launch["CHUNK"])
        extra = at.tokens * at.heads * (at.numbers * (chunks + 1) + 2 * chunks * (at.dim + 2) * 4)
    return Work(
        f"cached_attention by {'whole contexts' if whole else 'parts'}", str(at), needed * at.numbers,
        keys * 2 * at.kv_heads * at.numbers + extra, 4 * at.dim * at.tokens * at.heads * seen,
        4 * launch["WIDTH"] * at.kv_heads * cells,
    )  # fmt: skip


def packed_work(at: Groups, launches: Mapping[str, Mapping[str, Any]]) -> list[Work]:
    """Forward, and backward: needed are five products with the weights made again, done are seven. ``queries`` is
    not heeded: all tokens are."""
    repeat, answers = at.heads // at.kv_heads, at.groups * at.members
    tokens = at.groups * at.prefix + answers * at.own
    segments = [(at.groups, 0, at.prefix), (answers, at.prefix, at.own)]
    pairs = at.heads * sum(count * (n * ahead + n * (n + 1) / 2) for count, ahead, n in segments)

    def walked(launch: Mapping[str, Any]) -> tuple[float, float]:
        """Keys that the tiles of queries load, and cells that they compute, of one key head."""
        rows, step, keys, cells = launch["ROWS"], launch["KEYS"], 0, 0
        for count, ahead, n in segments:
            for stop in _stops(n, n, repeat, rows):
                keys += count * (ahead + stop)
                cells += count * rows * (padded(ahead, step) + padded(stop, step))
        return keys, cells

    q, kv, stats = tokens * at.heads * at.numbers, tokens * at.kv_heads * at.numbers, tokens * at.heads * 4
    keys, cells = walked(launches["forward"])
    work = [
        Work(
            "packed_attention forward", str(at), 2 * q + 2 * kv + stats,
            2 * q + stats + 2 * keys * at.kv_heads * at.numbers, 4 * at.dim * pairs,
            4 * launches["forward"]["WIDTH"] * at.kv_heads * cells,
        )
    ]  # fmt: skip
    pulled, pulled_cells = walked(launches["queries"])
    launch, pushed, pushed_cells = launches["keys"], 0, 0
    for count, n, children, child in ((at.groups, at.prefix, at.members, at.own), (answers, at.own, 0, 0)):
        for first in range(0, n, launch["KEYS"]):
            rows = (n - first) * repeat
            pushed += count * (rows + children * child * repeat)
            steps = padded(rows, launch["ROWS"]) + children * padded(child * repeat, launch["ROWS"])
            pushed_cells += count * launch["KEYS"] * steps
    moved = 4 * q + 2 * stats + 2 * pulled * at.kv_heads * at.numbers
    moved += 4 * kv + pushed * at.kv_heads * (2 * at.numbers + 8)
    done = launch["WIDTH"] * at.kv_heads * (6 * pulled_cells + 8 * pushed_cells)
    needed = 4 * q + 4 * kv + stats
    return [*work, Work("packed_attention backward", str(at), needed, moved, 10 * at.dim * pairs, done)]
