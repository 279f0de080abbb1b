"""Photographs: from an equirectangular panorama to the four views of a point."""

from __future__ import annotations

import json
import math
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.dataset import Route, Spot
from sftrl_fast.tasks.navigation.render import OFFSETS

MAX_PIXELS = 64 * 2**20
"""Of a panorama; a picture of more is not decoded."""
MAX_METADATA_BYTES = 2**20

Pixels = NDArray[np.uint8]


def fault(folder: Path, pano: str) -> str:
    """What is wrong with the picture and the metadata of a panorama; empty if nothing is."""
    try:
        _rotation(folder, pano)
        with _opened(folder, pano) as image:
            image.load()
    except UserError as found:
        return str(found)
    return ""


def north_up(folder: Path, pano: str) -> tuple[Pixels, float]:
    """The picture of a panorama, uint8 ``[height, width, 3]``, and the heading at its middle in degrees."""
    with _opened(folder, pano) as image:
        return np.asarray(image.convert("RGB")), _rotation(folder, pano)


def _opened(folder: Path, pano: str) -> Image.Image:
    path = folder / f"{pano}.jpg"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS or image.width != 2 * image.height:
            raise UserError(
                f"{path.name} has {image.width} x {image.height} pixels; needed: a panorama twice as wide as high, "
                f"of at most {MAX_PIXELS:,} pixels"
            )
        image.load()
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as found:
        raise UserError(f"{path.name} is no picture that can be read: {str(found)[:80]}") from None
    return image


def _rotation(folder: Path, pano: str) -> float:
    path = folder / f"{pano}.metadata.json"
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise UserError(f"{path.name} has {path.stat().st_size:,} bytes; that is no metadata")
        rotation = json.loads(path.read_text("utf-8"))["rotation"]
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as found:
        if isinstance(found, UserError):
            raise
        raise UserError(f"{path.name} holds no rotation") from None
    if isinstance(rotation, bool) or not isinstance(rotation, int | float) or not math.isfinite(rotation):
        raise UserError(f"{path.name}: rotation is {rotation!r:.40}; needed: degrees")
    return float(rotation)


@lru_cache(maxsize=4)
def _rays(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each pixel of a view of 90 degrees: degrees right of the middle, and above the horizon, ``[size, size]``."""
    at = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(at, -at)
    return np.degrees(np.arctan(x)), np.degrees(np.arctan2(y, np.hypot(1, x)))


def perspective(panorama: Pixels, middle: float, heading: float, size: int) -> Pixels:
    """The view of 90 degrees towards ``heading``, uint8 ``[size, size, 3]``, by bilinear interpolation.

    ``middle`` is the heading at the panorama's middle column.
    """
    height, width = panorama.shape[:2]
    right, above = _rays(size)
    x = ((heading - middle + right) / 360 + 0.5) * width - 0.5
    y = np.clip((0.5 - above / 180) * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    x1, y1 = (x0 + 1) % width, np.minimum(y0 + 1, height - 1)
    x0 %= width
    top = panorama[y0, x0] * (1 - fx) + panorama[y0, x1] * fx
    bottom = panorama[y1, x0] * (1 - fx) + panorama[y1, x1] * fx
    return np.rint(top * (1 - fy) + bottom * fy).astype(np.uint8)


def views_file(data: Path, spot: Spot, views: str) -> Path:
    """Where the views of a spot are kept in a folder of route files."""
    return data / f"views-{views}" / f"{spot.pano}-{spot.heading:03}.jpg"


def write_views(panoramas: Path, data: Path, route: Route, size: int, views: str) -> None:
    """Cut the views of every spot of ``route`` from its panoramas and keep them as pictures of ``size`` pixels."""
    for spot in route.spots:
        path = views_file(data, spot, views)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        picture, middle = north_up(panoramas, spot.pano)
        four = [perspective(picture, middle, spot.heading + offset, size // 2) for offset in OFFSETS[views]]
        grid = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
        Image.fromarray(grid).save(path, quality=90)


@lru_cache(maxsize=512)
def photograph(data: str, spot: Spot, size: int, views: str) -> Pixels:
    """The four views of ``spot`` as ``data import-virl`` kept them, uint8 ``[size, size, 3]``, read-only.

    ``UserError`` if they are not there.
    """
    path = views_file(Path(data), spot, views)
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except OSError as found:
        raise UserError(
            f"data={data!r}: the views {path.name} cannot be read: {found}; import them with --views {views}"
        ) from None
    pixels.setflags(write=False)
    return pixels
