"""Files of every kind and in every state of disrepair."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sftrl_fast.core import UserError
from sftrl_fast.tasks.pictures import read_picture

ORANGE = (250, 120, 10)


def stored(image: Pillow.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Pillow.fromarray(noise()).save(path)
    read = read_picture(path)
    assert np.array_equal(read, noise())
    assert not read.flags.writeable
    assert np.array_equal(read_picture(path.read_bytes()), noise())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_red_green_blue(mode: str) -> None:
    grey = Pillow.new("L", (7, 5), 200)
    if mode in ("I;16", "I"):
        image = Pillow.fromarray(np.full((5, 7), 200 * 257, np.uint16)).convert(mode)
    elif mode == "F":
        image = Pillow.fromarray(np.linspace(0, 9, 35, dtype=np.float32).reshape(5, 7))
    else:
        image = grey.convert(mode)
    form = {"CMYK": "TIFF", "YCbCr": "TIFF", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    read = read_picture(stored(image, form))
    assert read.shape == (5, 7, 3)
    assert read.dtype == np.uint8
    if mode == "F":
        assert (read[0, 0].max(), read[-1, -1].min()) == (0, 255)
    elif mode != "1":
        assert abs(read.astype(int) - 200).max() <= 2


def test_what_is_transparent_is_white() -> None:
    image = Pillow.new("RGBA", (4, 4), (*ORANGE, 0))
    image.putpixel((0, 0), (*ORANGE, 255))
    read = read_picture(stored(image))
    assert read[0, 0].tolist() == list(ORANGE)
    assert (read[1:] == 255).all()


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 5)), (6, (0, 3)), (8, (5, 0))])
def test_a_turned_camera_is_turned_back(orientation: int, corner: tuple[int, int]) -> None:
    image = Pillow.new("RGB", (6, 4))
    image.putpixel((0, 0), ORANGE)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    read = read_picture(stored(image, "PNG", exif=exif))
    assert read.shape == ((4, 6, 3) if orientation in (1, 3) else (6, 4, 3))
    assert read[corner].tolist() == list(ORANGE)


def test_one_pixel_and_an_animation() -> None:
    assert read_picture(stored(Pillow.new("RGB", (1, 1), ORANGE))).tolist() == [[list(ORANGE)]]
    frames = [Pillow.new("RGB", (3, 3), colour) for colour in ("white", "black")]
    assert (read_picture(stored(frames[0], "GIF", save_all=True, append_images=frames[1:])) == 255).all()


def test_a_bomb_is_not_unfolded() -> None:
    """A PNG of a hundred bytes that says it has ten billion pixels, and one just above a bound of the caller's."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=r"too large|at most"):
        read_picture(bomb)
    with pytest.raises(UserError, match=r"30 x 20 pixels; at most 599 are read"):
        read_picture(stored(Pillow.fromarray(noise(20, 30))), max_pixels=599)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_what_is_cut_short_is_refused_or_read_never_more(form: str) -> None:
    whole = stored(Pillow.fromarray(noise(64, 64)), form)
    assert read_picture(whole).shape == (64, 64, 3)
    for keep in (0, 1, 10, len(whole) // 4, len(whole) // 2):
        with pytest.raises(UserError, match="cannot be read as a picture"):
            read_picture(whole[:keep])


@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
    place=st.floats(0, 1),
    bytes_=st.binary(min_size=1, max_size=40),
)
@settings(max_examples=120, deadline=None)
def test_damage_anywhere_ends_in_a_picture_or_a_clear_error(form: str, place: float, bytes_: bytes) -> None:
    whole = bytearray(stored(Pillow.fromarray(noise()), form))
    at = int(place * (len(whole) - 1))
    whole[at : at + len(bytes_)] = bytes_
    try:
        read = read_picture(bytes(whole), max_pixels=1_000_000)
    except UserError:
        return
    assert read.ndim == 3
    assert read.shape[2] == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.png"):
        read_picture(tmp_path / "nothing.png")
