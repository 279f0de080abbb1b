"""Keys and values of many sequences in pages of one pool."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

PAGE_SIZE = 16
"""Tokens a page. Half a page is lost at the end of a context and of an answer; a page of one head is a few KiB."""

Int32Array = npt.NDArray[np.int32]


class KVCache:
    """A fixed number of pages; who holds which is the scheduler's to know.

    ``keys`` and ``values`` are a ``[pages, Hkv, PAGE_SIZE, Dh]`` a layer, not initialised: the pool's memory becomes
    real as pages are written, and pages given back last are taken first.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages = pages_for(tokens)
        shape = (self.pages, kv_heads, PAGE_SIZE, head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.free = self.pages
        self._stack = np.arange(self.pages, dtype=np.int32)[::-1].copy()
        self._held = np.zeros(self.pages, dtype=bool)

    def take(self, count: int) -> Int32Array:
        """``count`` pages, which must be free."""
        assert count <= self.free, "the scheduler makes room before it takes pages"
        self.free -= count
        pages = self._stack[self.free : self.free + count][::-1].copy()
        self._held[pages] = True
        return pages

    def give(self, pages: Int32Array) -> None:
        """Take pages back that :meth:`take` handed out."""
        assert self._held[pages].all(), "a page was given back twice"
        self._held[pages] = False
        self._stack[self.free : self.free + len(pages)] = pages[::-1]
        self.free += len(pages)


def pages_for(tokens: int) -> int:
    """Pages that hold ``tokens`` tokens of one owner."""
    return -(-tokens // PAGE_SIZE)
