"""Picture files from anywhere: read whole and right, or refused with a reason."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from sftrl_fast.core import Image, UserError

MAX_PIXELS = 50_000_000
"""A picture of more is refused before it is decoded: a small file may unfold to gigabytes."""

# What Pillow's decoders raise on broken input.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def read_picture(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture in a file, or in a file's bytes, as uint8 ``[height, width, 3]``, read-only.

    It is turned as its EXIF data say; grey, palette, CMYK and 16-bit pictures become red, green, blue, what is
    transparent becomes white, and of an animation the first frame counts. Raises ``UserError`` for what is missing,
    broken, cut short, or larger than ``max_pixels``.
    """
    name = repr(str(source)) if isinstance(source, Path) else f"<{len(source)} bytes>"
    try:
        with Pillow.open(source if isinstance(source, Path) else BytesIO(source)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise UserError(
                    f"image={name} has {width} x {height} pixels; at most {max_pixels:,} are read"
                )
            opened.load()
            turned = ImageOps.exif_transpose(opened)
            pixels = np.array(_rgb(turned))
    except UserError:
        raise
    except Pillow.DecompressionBombError as fault:
        raise UserError(f"image={name} is too large to be read: {fault}") from None
    except _BROKEN as fault:
        raise UserError(f"image={name} cannot be read as a picture: {fault}") from None
    pixels.setflags(write=False)
    return pixels


def _rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would cut these off at 255: wide grey values are scaled down, by what the type or the picture needs.
        wide = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(wide.max(initial=0.0)))
        image = Pillow.fromarray((np.nan_to_num(wide).clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        white = Pillow.new("RGBA", whole.size, (255, 255, 255, 255))
        image = Pillow.alpha_composite(white, whole)
    return image.convert("RGB")
