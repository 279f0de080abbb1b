"""One card as vectors: suits, pips, numerals and letters, drawn large and scaled down.

Everything is drawn here; letters come from DejaVu Sans Bold (a free licence), which matplotlib ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sftrl_fast.tasks.general_points.rules import FIRST_FACE, RANK_NAMES

Colour = tuple[int, int, int]
Point = tuple[float, float]

ROMAN = ("A", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "J", "Q", "K")
NUMERALS = ("western", "roman", "dots")
"""How 2 to 10 are written; A, J, Q and K are letters in all."""
FELT: Colour = (27, 112, 62)
_PAPER: Colour = (253, 253, 250)
_EDGE: Colour = (120, 120, 120)
_OVERSAMPLING = 4
_STEPS = 12
"""Points of a curve."""

# Pips: column (-1 left, 0 middle, 1 right) and height on the card; those of the lower half stand on their heads.
_CORNERS = [(x, y) for x in (-1, 1) for y in (0.16, 0.84)]
_SIDES = [(-1, 0.5), (1, 0.5)]
_EIGHT = _CORNERS + [(x, y) for x in (-1, 1) for y in (0.387, 0.613)]
_PIPS: dict[int, list[tuple[int, float]]] = {
    2: [(0, 0.16), (0, 0.84)],
    3: [(0, 0.16), (0, 0.5), (0, 0.84)],
    4: _CORNERS,
    5: [*_CORNERS, (0, 0.5)],
    6: _CORNERS + _SIDES,
    7: [*_CORNERS, *_SIDES, (0, 0.33)],
    8: [*_CORNERS, *_SIDES, (0, 0.33), (0, 0.67)],
    9: [*_EIGHT, (0, 0.5)],
    10: [*_EIGHT, (0, 0.273), (0, 0.727)],
}


def _curve(start: Point, a: Point, b: Point, end: Point) -> list[Point]:
    """A cubic Bezier curve without its first point."""
    points = []
    for step in range(1, _STEPS + 1):
        t = step / _STEPS
        w = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        x, y = (sum(k * p[axis] for k, p in zip(w, (start, a, b, end), strict=True)) for axis in (0, 1))
        points.append((x, y))
    return points


def _mirrored(half: Sequence[Point]) -> list[Point]:
    """A left half, bottom to top, and its mirror image."""
    return [*half, *((-x, y) for x, y in reversed(half))]


def _heart() -> list[Point]:
    half: list[Point] = [(0.0, 0.5)]
    half += _curve(half[-1], (-0.10, 0.33), (-0.5, 0.12), (-0.5, -0.2))
    half += _curve(half[-1], (-0.5, -0.4), (-0.38, -0.5), (-0.25, -0.5))
    half += _curve(half[-1], (-0.12, -0.5), (0.0, -0.42), (0.0, -0.26))
    return _mirrored(half)


def _stem() -> list[Point]:
    half: list[Point] = [(0.0, 0.5), (-0.2, 0.5)]
    half += _curve(half[-1], (-0.08, 0.42), (-0.05, 0.3), (-0.04, 0.0))
    return _mirrored(half)


def _diamond() -> list[Point]:
    half: list[Point] = [(0.0, 0.5)]
    half += _curve(half[-1], (-0.1, 0.3), (-0.25, 0.12), (-0.38, 0.0))
    half += _curve(half[-1], (-0.25, -0.12), (-0.1, -0.3), (0.0, -0.5))
    return _mirrored(half)


def _disc(x: float, y: float, radius: float) -> list[Point]:
    corners = [(x + radius, y), (x, y + radius), (x - radius, y), (x, y - radius)]
    k = 0.5523 * radius  # the control points of a quarter of a circle
    turns = [(0.0, k), (-k, 0.0), (0.0, -k), (k, 0.0)]
    points: list[Point] = []
    for i in range(4):
        p, q, u, v = corners[i], corners[(i + 1) % 4], turns[i], turns[(i + 1) % 4]
        points += _curve(p, (p[0] + u[0], p[1] + u[1]), (q[0] - v[0], q[1] - v[1]), q)
    return points


SUITS: tuple[list[list[Point]], ...] = (
    [[(0.92 * x, -0.78 * y - 0.11) for x, y in _heart()], _stem()],
    [_heart()],
    [_diamond()],
    [
        _disc(0, -0.26, 0.235),
        _disc(-0.26, 0.07, 0.235),
        _disc(0.26, 0.07, 0.235),
        _disc(0, -0.04, 0.12),
        _stem(),
    ],
)
"""Spade, heart, diamond, club: polygons in a square from -0.5 to 0.5, y downwards."""
SPADE, HEART, DIAMOND, CLUB = range(4)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")
    assert spec is not None, "matplotlib is a dependency"
    assert spec.origin is not None, "and no namespace package"
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size)


def _letters(text: str, height: float, most: float) -> Image.Image:
    """``text`` as a mask: its letters ``height`` pixels high, squeezed where it would be wider than ``most``."""
    font = _font(max(8, round(height / 0.73)))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    width = max(1, min(mask.width, round(most)))
    return mask.resize((width, mask.height), Image.Resampling.BOX)


class _Sheet:
    """A card under way, in units of its width and height."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width * _OVERSAMPLING, height * _OVERSAMPLING
        self.image = Image.new("RGB", (self.width, self.height), FELT)
        self.pen = ImageDraw.Draw(self.image)
        self.pen.rounded_rectangle(
            (0, 0, self.width - 1, self.height - 1),
            0.07 * self.width,
            _PAPER,
            _EDGE,
            max(1, self.width // 150),
        )

    def suit(
        self, suit: int, place: Point, size: float, colour: Colour, *, upside_down: bool = False
    ) -> None:
        """``size`` is in widths."""
        x, y = place[0] * self.width, place[1] * self.height
        scale = size * self.width
        turn = -scale if upside_down else scale
        for polygon in SUITS[suit]:
            self.pen.polygon([(x + scale * px, y + turn * py) for px, py in polygon], fill=colour)

    def dot(self, place: Point, size: float, colour: Colour) -> None:
        x, y, r = place[0] * self.width, place[1] * self.height, size * self.width / 2
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def letters(self, text: str, place: Point, height: float, most: float, colour: Colour) -> None:
        """``text`` centred at ``place``; ``height`` and ``most`` (its width at most) are in widths."""
        mask = _letters(text, height * self.width, most * self.width)
        corner = (
            round(place[0] * self.width - mask.width / 2),
            round(place[1] * self.height - mask.height / 2),
        )
        self.image.paste(colour, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def mirror_corner(self, width: float, height: float) -> None:
        """Copy the upper left corner, turned round, into the lower right."""
        box = (0, 0, round(width * self.width), round(height * self.height))
        corner = self.image.crop(box).rotate(180)
        self.image.paste(corner, (self.width - box[2], self.height - box[3]))


def draw_card(
    rank: int, suit: int, colour: Colour, numerals: str, index: float, width: int, height: int
) -> Image.Image:
    """A card of ``width`` x ``height`` pixels; its rounded corners stand on the table's felt.

    ``index`` is the height of the letters in the corner, in widths of the card.
    """
    sheet = _Sheet(width, height)
    named = rank == 1 or rank >= FIRST_FACE
    # What stands in the middle keeps clear of the corners' letters.
    inner = 0.05 + 1.16 * index
    if rank >= FIRST_FACE:
        _face(sheet, RANK_NAMES[rank - 1], suit, colour, inner)
    elif named or numerals == "roman":
        sheet.suit(suit, (0.5, 0.5), 0.44, colour)
    else:
        size = 0.34 - index if numerals == "western" else 0.15
        left = inner + size / 2
        for column, y in _PIPS[rank]:
            place = (0.5 + column * (0.5 - left), y)
            if numerals == "western":
                sheet.suit(suit, place, size, colour, upside_down=y > 0.5)
            else:
                sheet.dot(place, size, colour)
    ratio = width / height
    text = (
        "" if numerals == "dots" and not named else (ROMAN if numerals == "roman" else RANK_NAMES)[rank - 1]
    )
    corner = 0.03 + 0.58 * index
    small = 0.7 * index
    below = 0.04 + index * ratio
    if text:
        sheet.letters(text, (corner, 0.035 + index * ratio / 2), index, 1.16 * index, colour)
    sheet.suit(suit, (corner, (below + 0.025 if text else 0.04) + small * ratio / 2), small, colour)
    sheet.mirror_corner(2 * corner - 0.03, below + 0.04 + small * ratio)
    return sheet.image.reduce(_OVERSAMPLING)


def _face(sheet: _Sheet, name: str, suit: int, colour: Colour, inner: float) -> None:
    """What face cards have: a frame that begins at ``inner``, and in it the letter between two suits."""
    box = (inner * sheet.width, 0.07 * sheet.height, (1 - inner) * sheet.width, 0.93 * sheet.height)
    sheet.pen.rectangle(box, outline=colour, width=max(1, sheet.width // 90))
    room = 1 - 2 * inner
    sheet.letters(name, (0.5, 0.5), 0.4, 0.85 * room, colour)
    for y in (0.18, 0.82):
        sheet.suit(suit, (0.5, y), min(0.2, 0.6 * room), colour, upside_down=y > 0.5)
