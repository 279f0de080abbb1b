"""Random numbers keyed by what they are for, so that no two uses share a stream by accident."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(*key: str | int) -> int:
    """A 64-bit hash of ``key``, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unit(*key: str | int) -> float:
    """``digest`` as a number in [0, 1)."""
    return (digest(*key) >> 11) * 2.0**-53


def generator(task: str, split: str, index: int, draw: int = 0) -> np.random.Generator:
    """The generator for draw ``draw`` of item ``index``.

    Keyed by hash and not by sum: with ``seed + index`` neighbouring seeds would share nearly all their items.
    """
    return np.random.default_rng(digest(task, split, index, draw))
