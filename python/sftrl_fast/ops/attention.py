"""Causal attention where many sequences share a beginning: over a paged cache, and over packed training rows.

:func:`cached_attention` serves generation (prefill, revision turns and single decode steps alike),
:func:`packed_attention` serves training. Both read a shared prompt's keys and values once for all its answers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


@dataclass(frozen=True)
class CacheRows:
    """Where the context of each of S sequences lies in a paged cache; int32 tensors on the cache's device.

    Sequence s has read ``prefix_lengths[prefix_of[s]]`` tokens in the pages ``prefix_pages[prefix_of[s]]``, then
    ``own_lengths[s]`` tokens in the pages ``own_pages[s]``. Its newest ``query_offsets[s + 1] - query_offsets[s]`` own
    tokens are the queries. Their keys and values are in the cache already; each sees itself and all before it.
    A page holds one sequence's tokens only, so a prefix may end and own tokens begin in the middle of nothing:
    both start at offset 0 of their first page. Sequences with the same prefix stand side by side; a sequence
    without one points to a prefix of length 0. Entries of the page tables beyond the lengths are not read.
    """

    query_offsets: Tensor
    """``[S + 1]``, ascending from 0 to T; no sequence without a query."""
    prefix_of: Tensor
    """``[S]``, ascending, in ``[0, G)``."""
    prefix_pages: Tensor
    """``[G, A]``."""
    prefix_lengths: Tensor
    """``[G]``, tokens."""
    own_pages: Tensor
    """``[S, B]``."""
    own_lengths: Tensor
    """``[S]``, tokens, the queries included."""

    @cached_property
    def max_query(self) -> int:
        """Queries of the sequence with the most."""
        return int(self.query_offsets.diff().max()) if len(self.own_lengths) else 0

    def check(self, tokens: int, pages: int, page_size: int) -> None:
        """Raise :class:`UserError` unless the tables are sound for ``tokens`` queries and a cache of ``pages``.

        Every entry that would be read is looked at; call it once for a step, not once a layer.
        """
        self._check_shapes()
        sequences, prefixes = len(self.own_lengths), len(self.prefix_lengths)
        offsets, prefix_of = self.query_offsets.long(), self.prefix_of.long()  # a difference may need 33 bits
        queries = offsets.diff()
        if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or bool((queries < 1).any()):
            raise UserError(f"rows.query_offsets: needed: rising from 0 to T = {tokens}")
        if bool((self.own_lengths < queries).any()):
            raise UserError("rows.own_lengths: needed: at least the sequence's number of queries")
        if sequences and (
            bool((prefix_of.diff() < 0).any()) or int(prefix_of[0]) < 0 or int(prefix_of[-1]) >= prefixes
        ):
            raise UserError(f"rows.prefix_of: needed: ascending, in [0, {prefixes})")
        for name in ("prefix", "own"):
            lengths, table = getattr(self, f"{name}_lengths"), getattr(self, f"{name}_pages")
            used = torch.arange(table.shape[1], device=table.device) * page_size < lengths.unsqueeze(1)
            if bool((lengths < 0).any()) or bool((lengths > table.shape[1] * page_size).any()):
                raise UserError(
                    f"rows.{name}_lengths: needed: 0 to {table.shape[1]} pages of {page_size} tokens"
                )
            if bool((used & ((table < 0) | (table >= pages))).any()):
                raise UserError(f"rows.{name}_pages: needed: pages in [0, {pages})")

    def _check_shapes(self) -> None:
        sequences, prefixes = self.own_lengths.numel(), self.prefix_lengths.numel()
        for name, shape in (
            ("own_lengths", (sequences,)), ("prefix_lengths", (prefixes,)), ("query_offsets", (sequences + 1,)),
            ("prefix_of", (sequences,)), ("prefix_pages", (prefixes, "any")), ("own_pages", (sequences, "any")),
        ):  # fmt: skip
            table = getattr(self, name)
            fits = table.dim() == len(shape) and table.shape[0] == shape[0]
            if table.dtype != torch.int32 or not fits or not table.is_contiguous():
                came, needed = f"{table.dtype} {list(table.shape)}", ", ".join(map(str, shape))
                raise UserError(f"rows.{name} is {came}; needed: contiguous torch.int32 [{needed}]")


@torch.no_grad()
def cached_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: CacheRows, *, scale: float, impl: str | None = None
) -> Tensor:
    """``softmax(scale q k^T) v`` of the newest tokens over the cache; ``[T, Hq, Dh]`` in q's type.

    ``q`` is ``[T, Hq, Dh]``, the caches ``[pages, Hkv, page, Dh]`` with ``Hq`` a multiple of ``Hkv`` (query head h
    reads head ``h * Hkv // Hq``), all of one type and device. Sums run in float32. ``rows`` must have passed
    :meth:`CacheRows.check`; it is not looked at again here. A sequence's result depends on no other sequence.
    Raises :class:`UserError` for wrong shapes, types, devices or layouts.
    """
    if q.dim() != 3 or not q.is_floating_point() or k_cache.dim() != 4 or k_cache.shape != v_cache.shape:
        shapes = f"{list(q.shape)}, {list(k_cache.shape)}, {list(v_cache.shape)}"
        raise UserError(
            f"q, k_cache, v_cache have shapes {shapes}; needed: [T, Hq, Dh], [pages, Hkv, page, Dh] twice"
        )
    if q.shape[2] != k_cache.shape[3] or k_cache.shape[1] == 0 or q.shape[1] % k_cache.shape[1]:
        heads = f"Hq {q.shape[1]}, Hkv {k_cache.shape[1]}, Dh {q.shape[2]} and {k_cache.shape[3]}"
        raise UserError(f"q, k_cache: {heads}; needed: Hq a multiple of Hkv and one Dh")
    if not q.dtype == k_cache.dtype == v_cache.dtype or not q.device == k_cache.device == v_cache.device:
        raise UserError("q, k_cache, v_cache: needed: one type and one device")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise UserError("k_cache, v_cache: needed: contiguous")
    _check_devices(rows, q)
    if not q.numel():
        return torch.empty_like(q)
    return resolve("cached_attention", impl, q)(q, k_cache, v_cache, rows, scale)


@dataclass(frozen=True, slots=True)
class Shown:
    """Which tokens of a pass see pictures, and where those lie."""

    tokens: Tensor | None
    """int64 ``[N]``, their places in the pass, in the order of ``rows``; None if they are all, in their own order."""
    rows: CacheRows
    """A sequence a token."""
    keys: list[Tensor]
    """``[pages, Hkv, page, Dh]`` for each layer that attends to pictures."""
    values: list[Tensor]
    follows: Tensor
    """bool ``[T, 1]``, True for those at or behind their picture: ahead of one, and where there is none, the
    feed-forward half of those layers is skipped."""


def _check_devices(rows: CacheRows | PackedRows, q: Tensor) -> None:
    for field in fields(rows):
        device = getattr(rows, field.name).device
        if device != q.device:
            raise UserError(f"rows.{field.name} is on {device}; needed: on {q.device}")


def cached_attention_torch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: CacheRows, scale: float
) -> Tensor:
    """The plain torch implementation, a sequence at a time; arguments as checked by :func:`cached_attention`."""
    page = k_cache.shape[2]
    out = torch.empty_like(q)
    lists = (getattr(rows, name).tolist() for name in ("prefix_of", "prefix_lengths", "own_lengths"))
    offsets, (prefix_of, prefix_lengths, own_lengths) = rows.query_offsets.tolist(), lists
    for s, (group, own) in enumerate(zip(prefix_of, own_lengths, strict=True)):
        shared, begin, end = prefix_lengths[group], offsets[s], offsets[s + 1]
        parts = ((rows.prefix_pages[group], shared), (rows.own_pages[s], own))
        k, v = (
            torch.cat([_gather(cache, table[: -(-n // page)], n) for table, n in parts], dim=1)
            for cache in (k_cache, v_cache)
        )
        seen = torch.ones(end - begin, shared + own, dtype=torch.bool, device=q.device)
        out[begin:end] = _attend(q[begin:end], k, v, seen.tril(shared + own - (end - begin)), scale)
    return out


def _gather(cache: Tensor, pages: Tensor, length: int) -> Tensor:
    """The first ``length`` tokens that stand in ``pages``, ``[Hkv, length, Dh]``."""
    taken = cache[pages.long()].transpose(0, 1)
    return taken.reshape(cache.shape[1], len(pages) * cache.shape[2], cache.shape[3])[:, :length]


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Attention of ``q [n, Hq, Dh]`` over ``k, v [Hkv, m, Dh]`` where ``seen [n, m]``; ``[n, Hq, Dh]``."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    repeat = q.shape[1] // k.shape[0]
    k, v = (part.to(wide).repeat_interleave(repeat, dim=0) for part in (k, v))
    scores = (q.to(wide).transpose(0, 1) @ k.transpose(1, 2)) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=2)
    return (weights @ v).transpose(0, 1).to(q.dtype)


@dataclass(frozen=True)
class PackedRows:
    """How T packed tokens fall into S segments; int32 tensors on the tokens' device.

    Segment s is the tokens ``offsets[s]:offsets[s + 1]``. Each of them sees itself, those before it in its segment,
    and the whole of segment ``parent[s]``, a prompt that several answers share (-1: nothing more). A parent stands
    before its children and has no parent itself.
    """

    offsets: Tensor
    """``[S + 1]``, ascending from 0 to T; empty segments allowed."""
    parent: Tensor
    """``[S]``."""

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest segment."""
        return int(self.offsets.diff().max()) if len(self.parent) else 0

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest segment together with its parent's."""
        lengths = self.offsets.diff()
        shared = torch.where(self.parent >= 0, lengths[self.parent.clamp_min(0).long()], 0)
        return int((lengths + shared).max()) if len(self.parent) else 0

    @cached_property
    def as_cache(self) -> CacheRows:
        """The segments as sequences over a cache with a page a token, in which token t is page t.

        A parent is its children's prefix, so that a sum over a row has the order it has in :func:`cached_attention`.
        """
        kept = self.offsets.diff() > 0
        begin, length, parent = self.offsets[:-1][kept], self.offsets.diff()[kept], self.parent[kept]
        first = torch.ones_like(kept[kept])
        first[1:] = parent[1:] != parent[:-1]
        shared = parent[first].clamp_min(0).long()
        prefix_lengths = torch.where(parent[first] >= 0, self.offsets.diff()[shared], 0)
        return CacheRows(
            query_offsets=torch.cat([begin, self.offsets[-1:]]),
            prefix_of=first.cumsum(0, dtype=torch.int32) - 1,
            prefix_pages=_pages(self.offsets[shared], prefix_lengths),
            prefix_lengths=prefix_lengths.int(),
            own_pages=_pages(begin, length),
            own_lengths=length,
        )

    def check(self, tokens: int) -> None:
        """Raise :class:`UserError` unless the tables are sound for ``tokens`` tokens; once a batch, not a layer."""
        segments = len(self.parent)
        for name, length in (("offsets", segments + 1), ("parent", segments)):
            table = getattr(self, name)
            if table.dtype != torch.int32 or table.shape != (length,) or not table.is_contiguous():
                came = f"{table.dtype} {list(table.shape)}"
                raise UserError(f"rows.{name} is {came}; needed: contiguous torch.int32 [{length}]")
        if (
            int(self.offsets[0]) != 0
            or int(self.offsets[-1]) != tokens
            or bool((self.offsets.diff() < 0).any())
        ):
            raise UserError(f"rows.offsets: needed: ascending from 0 to T = {tokens}")
        index = torch.arange(segments, device=self.parent.device)
        child = self.parent >= 0
        if bool((self.parent < -1).any()) or bool((self.parent >= index).any()):
            raise UserError("rows.parent: needed: -1 or an earlier segment")
        if bool(child[self.parent[child].long()].any()):
            raise UserError("rows.parent: needed: a parent that has no parent itself")


def _pages(begin: Tensor, lengths: Tensor) -> Tensor:
    """Page tables int32 ``[S, longest]`` of sequences with a page a token; entries beyond a length are not read."""
    longest = int(lengths.max()) if len(lengths) else 0
    return begin.unsqueeze(1) + torch.arange(longest, dtype=torch.int32, device=begin.device)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, *, scale: float, impl: str | None = None
) -> Tensor:
    """``softmax(scale q k^T) v`` of packed tokens, ``[T, Hq, Dh]`` in q's type; differentiable in q, k and v.

    ``q`` is ``[T, Hq, Dh]``, ``k`` and ``v`` are ``[T, Hkv, Dh]`` with ``Hq`` a multiple of ``Hkv`` (query head h reads
    head ``h * Hkv // Hq``), all of one type and device. Sums run in float32 (float64 for float64). ``rows`` must have
    passed :meth:`PackedRows.check`. No ``[T, T]`` matrix is kept.
    Raises :class:`UserError` for wrong shapes, types or devices.
    """
    if q.dim() != 3 or not q.is_floating_point() or k.dim() != 3 or k.shape != v.shape or len(k) != len(q):
        shapes = f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        raise UserError(f"q, k, v have shapes {shapes}; needed: [T, Hq, Dh], [T, Hkv, Dh] twice")
    if q.shape[2] != k.shape[2] or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        heads = f"Hq {q.shape[1]}, Hkv {k.shape[1]}, Dh {q.shape[2]} and {k.shape[2]}"
        raise UserError(f"q, k: {heads}; needed: Hq a multiple of Hkv and one Dh")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise UserError("q, k, v: needed: one type and one device")
    _check_devices(rows, q)
    return resolve("packed_attention", impl, q)(q, k, v, rows, scale)


def packed_attention_torch(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """The plain torch implementation, a segment at a time; arguments as checked by :func:`packed_attention`."""
    offsets = rows.offsets.tolist()
    outs = []
    for s, parent in enumerate(rows.parent.tolist()):
        own = slice(offsets[s], offsets[s + 1])
        shared = slice(offsets[parent], offsets[parent + 1]) if parent >= 0 else slice(0, 0)
        keys, values = (torch.cat([part[shared], part[own]]).transpose(0, 1) for part in (k, v))
        length, ahead = own.stop - own.start, shared.stop - shared.start
        seen = torch.ones(length, ahead + length, dtype=torch.bool, device=q.device).tril(ahead)
        outs.append(_attend(q[own], keys, values, seen, scale))
    return torch.cat(outs) if outs else q + k.sum() + v.sum()  # nothing, of all three
