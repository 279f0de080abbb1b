"""Layers of a decoder in one call: the other C++ kernels in a row, without Python between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.attention import CacheRows, Shown
from sftrl_fast.ops.cpp import DTYPE
from sftrl_fast.ops.cpp.cached_attention import sizes, tables
from sftrl_fast.ops.cpp.linear import CppLinear
from sftrl_fast.ops.linear import PackedLinear

IntArray = npt.NDArray[np.int64]
_CACHES = 12
"""The column of ``DecoderLayer``'s ``k_cache``."""

Layer = tuple[
    Tensor, PackedLinear, Tensor | None, Tensor | None, PackedLinear, Tensor, PackedLinear, PackedLinear,
    Tensor | None, Tensor | None,
]  # fmt: skip
"""Norm, qkv, q_norm, k_norm, out, mlp_norm, gate_up, down, and the two gates of a layer that attends to pictures, whose
qkv makes queries alone."""


class CppDecoderLayers:
    """The layers' addresses, kept for as long as the tensors they belong to.

    Nothing is copied: a weight that moves needs a new object.
    """

    def __init__(
        self, layers: Sequence[Layer], final_norm: Tensor, head_dim: int, eps: float, scale: float
    ) -> None:
        self._kept = list(layers), final_norm
        addresses = [[*_addresses(layer[:8]), 0, 0, *_addresses(layer[8:])] for layer in layers]
        self._table = np.array(addresses, dtype=np.int64)
        sees = np.array([layer[-1] is not None for layer in layers])
        self._plain, self._seeing = np.flatnonzero(~sees), np.flatnonzero(sees)
        _, qkv, _, _, out, _, gate_up, *_ = layers[self._plain[0]]
        self._hidden, query_width = out.shape
        self._feed_forward = gate_up.shape[0] // 2
        kv_width = (qkv.shape[0] - query_width) // 2
        self._heads = query_width // head_dim, kv_width // head_dim, head_dim
        self._eps, self._scale, self._final_norm = eps, scale, final_norm
        self._scratch_width = _C.decoder_layers_scratch(
            self._hidden, self._feed_forward, query_width, kv_width
        )
        self._scratch = torch.empty(0, dtype=final_norm.dtype)
        self._caches: tuple[list[Tensor], list[Tensor]] = [], []

    def run(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        slots: Tensor,
        rows: CacheRows,
        keys: list[Tensor],
        values: list[Tensor],
        wanted: Tensor,
        shown: Shown | None,
    ) -> Tensor:
        """See :meth:`sftrl_fast.models.decoder.Decoder.hidden`; ``x`` is ``[T, D]``. ``shown`` if a layer has gates."""
        if keys is not self._caches[0] or values is not self._caches[1]:
            self._caches = keys, values
            self._bind(self._plain, keys, values)
        pictures = None
        if shown is not None:
            self._bind(self._seeing, shown.keys, shown.values)  # they move when there are more pictures
            where = 0 if shown.tokens is None else shown.tokens.data_ptr()
            looking = where, shown.follows.data_ptr()
            pictures = looking, tables(shown.rows), sizes(shown.rows, shown.keys[0])
        tokens = len(x)
        out = torch.empty(len(wanted), self._hidden, dtype=x.dtype)
        if tokens * self._scratch_width > len(self._scratch):
            self._scratch = torch.empty(tokens * self._scratch_width, dtype=x.dtype)
        _C.decoder_layers(
            self._table.ctypes.data, len(self._table),
            (
                x.data_ptr(), rotary[0].data_ptr(), rotary[1].data_ptr(), positions.data_ptr(), slots.data_ptr(),
                wanted.data_ptr(), self._final_norm.data_ptr(), out.data_ptr(), self._scratch.data_ptr(),
            ),
            (tokens, len(out), self._hidden, self._feed_forward), tables(rows), sizes(rows, keys[0]), pictures,
            self._heads, self._eps, self._scale, DTYPE[x.dtype],
        )  # fmt: skip
        return out

    def _bind(self, layers: IntArray, keys: list[Tensor], values: list[Tensor]) -> None:
        self._table[layers, _CACHES] = [cache.data_ptr() for cache in keys]
        self._table[layers, _CACHES + 1] = [cache.data_ptr() for cache in values]


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
