"""A number that tells a tensor's values from others: to notice that weights were written to."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
FACTOR = 0x9E3779B97F4A7C15
"""The golden ratio in 64 bits: the multiples of an odd number near it are spread evenly."""


def fingerprint(x: Tensor, *, impl: str | None = None) -> int:
    """``sum_i word_i * ((i * FACTOR) | 1)`` modulo 2^64, of the values' bits in order, taken as signed integers of 32
    bits, or where they do not come out even, of one element each.

    Multilinear hashing with fixed multipliers: a change of one word always changes it, changes that are not made
    against it go unseen with a chance of about 2^-32. Words of 64 bits would not do: an even number of flips of their
    highest bits, every fourth bfloat16's sign, cancels. All implementations agree.
    Raises :class:`UserError` for elements other than 1, 2, 4 or 8 bytes.
    """
    if x.element_size() not in (1, 2, 4, 8) or x.dtype.is_complex:
        raise UserError(f"x is {x.dtype}; needed: real elements of 1, 2, 4 or 8 bytes")
    if not x.numel():
        return 0
    flat = x.detach().contiguous().view(-1)
    if all(part * flat.element_size() % 4 == 0 for part in (len(flat), flat.storage_offset())):
        flat = flat.view(torch.int32)
    return int(resolve("fingerprint", impl, flat)(flat)) % 2**64


def fingerprint_torch(x: Tensor) -> int:
    """The plain torch implementation, for contiguous ``x`` ``[N]``; a million elements at a time."""
    words = x.view(_INTEGERS[x.element_size()])
    factor, total = FACTOR - 2**64, 0
    for start in range(0, len(words), 1 << 20):
        part = words[start : start + (1 << 20)]
        index = torch.arange(start, start + len(part), device=x.device)
        total += int((part.long() * ((index * factor) | 1)).sum())
    return total
