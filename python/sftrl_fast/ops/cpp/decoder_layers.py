"""Layers of a decoder in one call: the other C++ kernels in a row, without Python between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.ops.cpp import DTYPE
from sftrl_fast.ops.cpp.linear import CppLinear
from sftrl_fast.ops.linear import PackedLinear


class CppDecoderLayers:
    """The layers' addresses, kept for as long as the tensors they belong to.

    ``layers`` holds for each: norm, qkv, q_norm, k_norm, out, mlp_norm, gate_up, down. The norms are tensors (those of
    the heads may be None), the others packed. ``first`` is the number of the first of them among all. Nothing is
    copied: a weight that moves needs a new object.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Tensor | PackedLinear | None]],
        final_norm: Tensor,
        head_dim: int,
        eps: float,
        scale: float,
        first: int = 0,
    ) -> None:
        self._kept = [list(layer) for layer in layers], final_norm
        self._table = np.array([[*_addresses(layer), 0, 0] for layer in layers], dtype=np.int64)
        _, qkv, _, _, out, _, gate_up, _ = layers[0]
        assert isinstance(qkv, CppLinear)
        assert isinstance(out, CppLinear)
        assert isinstance(gate_up, CppLinear)
        self._hidden, query_width = out.shape
        self._feed_forward = gate_up.shape[0] // 2
        kv_width = (qkv.shape[0] - query_width) // 2
        self._heads = query_width // head_dim, kv_width // head_dim, head_dim
        self._eps, self._scale, self._final_norm = eps, scale, final_norm
        self._span = slice(first, first + len(layers))
        self._scratch_width = _C.decoder_layers_scratch(
            self._hidden, self._feed_forward, query_width, kv_width
        )
        self._scratch = torch.empty(0, dtype=final_norm.dtype)
        self._caches: tuple[list[Tensor], list[Tensor]] = [], []

    def run(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        positions: Tensor,
        slots: Tensor,
        rows: CacheRows,
        keys: list[Tensor],
        values: list[Tensor],
        wanted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The normalised rows and what they were before; the latter is filled in only without ``wanted``, for all.

        See :meth:`sftrl_fast.models.decoder.Decoder.hidden`; ``x`` is ``[T, D]``, ``wanted`` ascending.
        """
        if keys is not self._caches[0] or values is not self._caches[1]:
            self._caches = keys, values
            self._table[:, -2] = [cache.data_ptr() for cache in keys[self._span]]
            self._table[:, -1] = [cache.data_ptr() for cache in values[self._span]]
        tokens, count = len(x), len(x if wanted is None else wanted)
        out = torch.empty(count, self._hidden, dtype=x.dtype)
        total = torch.empty_like(out)
        if tokens * self._scratch_width > len(self._scratch):
            self._scratch = torch.empty(tokens * self._scratch_width, dtype=x.dtype)
        heads, kv_heads, width = self._heads
        _C.decoder_layers(
            self._table.ctypes.data, len(self._table),
            (
                x.data_ptr(), tables[0].data_ptr(), tables[1].data_ptr(), positions.data_ptr(), slots.data_ptr(),
                0 if wanted is None else wanted.data_ptr(), self._final_norm.data_ptr(), out.data_ptr(),
                total.data_ptr() if wanted is None else 0, self._scratch.data_ptr(),
            ),
            (
                rows.query_offsets.data_ptr(), rows.prefix_of.data_ptr(), rows.prefix_pages.data_ptr(),
                rows.prefix_lengths.data_ptr(), rows.own_pages.data_ptr(), rows.own_lengths.data_ptr(),
            ),
            (tokens, count, self._hidden, self._feed_forward),
            (len(rows.own_lengths), rows.prefix_pages.shape[1], rows.own_pages.shape[1]),
            (heads, kv_heads, keys[0].shape[2], width), self._eps, self._scale, DTYPE[x.dtype],
        )  # fmt: skip
        return out, total


def _addresses(layer: Sequence[Tensor | PackedLinear | None]) -> list[int]:
    """In the order of ``DecoderLayer``: a packed weight is followed by its bias."""
    found: list[int] = []
    for part in layer:
        if isinstance(part, CppLinear):
            found += [part.panels.data_ptr(), 0 if part.bias is None else part.bias.data_ptr()]
        else:
            assert not isinstance(part, PackedLinear)
            found.append(0 if part is None else part.data_ptr())
    return found
