"""Numbers that tell tensors' values from others: to notice that weights were written to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
FACTOR = 0x9E3779B97F4A7C15
"""The golden ratio in 64 bits: the multiples of an odd number near it are spread evenly."""

Words = tuple[Tensor, int]
"""A contiguous tensor, and the bytes of an integer that it is read in: 1, 2 or 4."""


def fingerprints(tensors: Sequence[Tensor], *, impl: str | None = None) -> list[int]:
    """Of each ``sum_i word_i * ((i * FACTOR) | 1)`` modulo 2^64, of the values' bits in order, taken as signed integers
    of 32 bits, or where they do not come out even, of one element each.

    Multilinear hashing with fixed multipliers: a change of one word always changes it, changes that are not made
    against it go unseen with a chance of about 2^-32. Words of 64 bits would not do: an even number of flips of their
    highest bits, every fourth bfloat16's sign, cancels. All implementations agree.
    Raises :class:`UserError` for elements other than 1, 2, 4 or 8 bytes.
    """
    found: dict[int, int] = {}
    for device in {x.device for x in tensors}:
        places = [i for i, x in enumerate(tensors) if x.device == device]
        run = resolve("fingerprints", impl, tensors[places[0]])
        found |= zip(places, run([_words(tensors[i]) for i in places]), strict=True)
    return [found[i] for i in range(len(tensors))]


def _words(x: Tensor) -> Words:
    size = x.element_size()
    if size not in (1, 2, 4, 8) or x.is_complex():
        raise UserError(f"a tensor is {x.dtype}; needed: real elements of 1, 2, 4 or 8 bytes")
    x = x.detach().contiguous()
    even = x.numel() * size % 4 == 0 and x.storage_offset() * size % 4 == 0
    return x, 4 if even else size


def fingerprints_torch(arrays: Sequence[Words]) -> list[int]:
    """The plain torch implementation."""
    return [_sum(x.view(-1).view(_INTEGERS[width])) for x, width in arrays]


def _sum(words: Tensor) -> int:
    """A million elements at a time."""
    factor, total = FACTOR - 2**64, 0
    for start in range(0, len(words), 1 << 20):
        part = words[start : start + (1 << 20)]
        index = torch.arange(start, start + len(part), device=words.device)
        total += int((part.long() * ((index * factor) | 1)).sum())
    return total % 2**64
