"""``image_tiles`` on the CPU: two passes over bytes, the second one writes the normalised tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE
from sftrl_fast.ops.image_tiles import CHANNELS, Grid, resample_weights

_PADDING = 64
"""Bytes after each line of scratch, so that whole vectors may be read."""


def image_tiles_cpp(
    image: Tensor, grid: Grid, tile: int, slots: int, levels: Tensor, dtype: torch.dtype
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.image_tiles.image_tiles`."""
    image = image.contiguous()
    height, width = image.shape[:2]
    across, down = resample_weights(width, grid.width), resample_weights(height, grid.height)
    pitch = grid.width + _PADDING
    scratch = torch.empty(CHANNELS * height * pitch, dtype=torch.uint8)
    out = torch.empty(slots, CHANNELS, tile, tile, dtype=dtype)
    out[grid.rows * grid.columns :].zero_()
    _C.image_tiles(
        (image.data_ptr(), scratch.data_ptr(), levels.data_ptr(), out.data_ptr()),
        (across.first.data_ptr(), across.weights.data_ptr(), down.first.data_ptr(), down.weights.data_ptr()),
        (height, width, grid.height, grid.width, pitch, across.weights.shape[1], down.weights.shape[1]),
        (grid.rows, grid.columns, tile), DTYPE[dtype],
    )  # fmt: skip
    return out
