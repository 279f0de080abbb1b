"""A picture as the tiles of a vision tower: scaled down to fit a grid of tiles, padded, normalised.

The grid and the size are those of transformers' Mllama image processor. Scaling is Pillow's bilinear filter:
weights in fixed point of 22 bits, first along lines, then along columns, each rounded to a byte (Pillow 13 may take the
columns first, which can change a byte by one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve

WEIGHT_BITS = 22
CHANNELS = 3
MAX_SIDE = 65_535
"""Pixels along a side, of a picture and of a grid: what the weights' tables are made for."""


@dataclass(frozen=True, slots=True)
class Grid:
    """``rows`` x ``columns`` tiles, into whose upper left the picture goes with ``height`` x ``width`` pixels."""

    rows: int
    columns: int
    height: int
    width: int


@lru_cache(maxsize=4096)
def fit_grid(height: int, width: int, tile: int, max_tiles: int) -> Grid:
    """The grid of at most ``max_tiles`` tiles for a picture: the least enlargement that a grid allows, else the least
    reduction; of equal ones the least area."""
    best: tuple[tuple[bool, float, int], int, int] | None = None
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles // rows + 1):
            scale = min(rows * tile / height, columns * tile / width)
            order = (scale < 1, scale if scale >= 1 else -scale, rows * columns)
            if best is None or order < best[0]:
                best = order, rows, columns
    assert best is not None
    _, rows, columns = best
    high, wide = min(max(height, tile), rows * tile), min(max(width, tile), columns * tile)
    if wide / width < high / height:
        return Grid(rows, columns, min(math.floor(height * (wide / width)) or 1, high), wide)
    return Grid(rows, columns, high, min(math.floor(width * (high / height)) or 1, wide))


@dataclass(frozen=True, slots=True)
class Weights:
    """Output place i is the sum of input places ``first[i] + t`` times ``weights[i, t]`` / 2^22."""

    first: Tensor
    """int32 ``[out]``."""
    weights: Tensor
    """int32 ``[out, taps]``; 0 beyond the last tap in use."""


@lru_cache(maxsize=256)
def resample_weights(size: int, out: int) -> Weights:
    """Pillow's triangle filter from ``size`` places to ``out``; wider than one place where that is a reduction."""
    scale = size / out
    support = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = int((last - first).max())
    place = first[:, None] + np.arange(taps)
    distance = np.abs((place - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((place < last[:, None]) & (distance < 1), 1.0 - distance, 0.0)
    # Added up one after another, as Pillow does, for the last bit.
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    fixed = (weights * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    # Every tap may be read: those that weigh nothing are moved to where there are pixels.
    shift = np.maximum(first + taps - size, 0)
    for row in np.flatnonzero(shift):
        fixed[row] = np.roll(fixed[row], shift[row])
    return Weights(torch.from_numpy((first - shift).astype(np.int32)), torch.from_numpy(fixed))


@torch.no_grad()
def image_tiles(
    image: Tensor,
    grid: Grid,
    *,
    tile: int,
    slots: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    impl: str | None = None,
) -> Tensor:
    """``(scaled / 255 - mean) / std`` of a picture, cut into tiles: ``[slots, 3, tile, tile]`` of ``dtype``.

    ``image`` is uint8 ``[height, width, 3]`` on the CPU, ``grid`` comes from :func:`fit_grid`. Tiles stand row by row;
    what the picture leaves of them is black, and slots beyond them are zeros. Raises :class:`UserError` for wrong
    shapes, types and sizes.
    """
    if (
        image.dim() != 3
        or image.dtype != torch.uint8
        or image.shape[2] != CHANNELS
        or image.device.type != "cpu"
    ):
        came = f"{image.dtype} {list(image.shape)} on {image.device}"
        raise UserError(f"image is {came}; needed: torch.uint8 [height, width, 3] on cpu")
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(f"image is {height} x {width}; needed: 1 to {MAX_SIDE} pixels a side")
    if tile < 1 or grid.rows < 1 or grid.columns < 1 or max(grid.rows, grid.columns) * tile > MAX_SIDE:
        raise UserError(
            f"grid is {grid} and tile {tile}; needed: at least 1 and at most {MAX_SIDE} pixels a side"
        )
    if not (1 <= grid.height <= grid.rows * tile and 1 <= grid.width <= grid.columns * tile):
        raise UserError(f"grid is {grid}; needed: a height and width that its tiles of {tile} hold")
    if slots < grid.rows * grid.columns:
        raise UserError(
            f"slots is {slots}; needed: at least the {grid.rows * grid.columns} tiles of the grid"
        )
    if len(mean) != CHANNELS or len(std) != CHANNELS or min(std) <= 0:
        raise UserError(f"mean is {mean} and std {std}; needed: {CHANNELS} numbers each, std positive")
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"dtype is {dtype}; needed: float32 or bfloat16")
    scale = np.array([1 / (255 * s) for s in std])
    bias = np.array([-m / s for m, s in zip(mean, std, strict=True)])
    levels = torch.from_numpy(np.stack([scale, bias]).astype(np.float32))
    result: Tensor = resolve("image_tiles", impl, image)(image, grid, tile, slots, levels, dtype)
    return result


def image_tiles_torch(
    image: Tensor, grid: Grid, tile: int, slots: int, levels: Tensor, dtype: torch.dtype
) -> Tensor:
    """The plain torch implementation; ``levels`` are the factor and the summand of each channel, ``[2, 3]``."""
    rows, columns = grid.rows, grid.columns
    table = _resampled(image.permute(2, 0, 1), resample_weights(image.shape[1], grid.width))
    table = _resampled(table.transpose(1, 2), resample_weights(image.shape[0], grid.height)).transpose(1, 2)
    canvas = torch.zeros(CHANNELS, rows * tile, columns * tile, dtype=torch.uint8)
    canvas[:, : grid.height, : grid.width] = table
    scaled = canvas * levels[0].view(-1, 1, 1) + levels[1].view(-1, 1, 1)
    tiles = scaled.view(CHANNELS, rows, tile, columns, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)
    out = torch.zeros(slots, CHANNELS, tile, tile, dtype=dtype)
    out[: rows * columns] = tiles
    return out


def _resampled(planes: Tensor, by: Weights) -> Tensor:
    """uint8 ``[..., size]`` to ``[..., out]``."""
    total = torch.full((*planes.shape[:-1], len(by.first)), 1 << (WEIGHT_BITS - 1), dtype=torch.int32)
    for tap, weight in enumerate(by.weights.T):
        total += planes[..., by.first.long() + tap].int() * weight
    return (total >> WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)
