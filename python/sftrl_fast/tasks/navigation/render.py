"""Street views: four drawn views of a point, 90 degrees each, as one picture.

Streets are corridors that leave the point; what lies between them is built up. So the wall in a direction is as
far as the longest corridor reaches there, and every pixel is sky, wall or ground by its height over the ground at
that distance. The landmark is a sign with its name on the side where it stands.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sftrl_fast.tasks.navigation.city import CITIES
from sftrl_fast.tasks.navigation.dataset import Spot
from sftrl_fast.tasks.navigation.looks import LOOKS, Look
from sftrl_fast.tasks.navigation.rules import wrapped
from sftrl_fast.tasks.seeding import digest

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

VIEWS = ("exact", "reference")
# Degrees from the heading, in reading order. The published code's are not what its prompt calls them.
OFFSETS = {"exact": (0, 90, 180, -90), "reference": (-135, -45, 45, 135)}

EYE = 2.4
"""Metres above the road."""
STREET, ROAD = 9.0, 6.0
"""Metres from the middle of a street to the houses, and to the kerb."""
FARTHEST = 140.0
CROSSWALK = (11.0, 14.0)
"""Metres along a street that leaves a crossing, where its stripes lie."""
FRONT_RIGHT = 60.0
"""Degrees from straight ahead, within which a landmark is shown in the front view."""
BEHIND = 150.0


@lru_cache(maxsize=512)
def street_view(spot: Spot, city: str, size: int, views: str = "exact") -> Pixels:
    """The four views of ``spot`` in ``city``, uint8 ``[size, size, 3]``, read-only: front, right / back, left.

    ``size`` is even. ``views="reference"`` takes the headings of the published code. A city that is not made up
    here gets a style by its name.
    """
    look = LOOKS[CITIES[city].look] if city in CITIES else list(LOOKS.values())[digest(city) % len(LOOKS)]
    half = size // 2
    headings = [spot.heading + offset for offset in OFFSETS[views]]
    strip = _draw(spot, look, headings, half, digest("navigation-view", city, *map(repr, spot.at)))
    words = np.concatenate([strip[:, :size], strip[:, size:]])
    # Pillow drops the fourth byte several times faster than a strided copy.
    grid = np.array(Image.frombuffer("RGBX", (size, size), words, "raw", "RGBX", 0, 1).convert("RGB"))
    if spot.sight is not None:
        place = view_with(spot, headings)
        top, left = place // 2 * half, place % 2 * half
        _sign(grid[top : top + half, left : left + half], spot, headings[place], look)
    # A line between the views.
    grid[half - 1 : half + 1] = 0
    grid[:, half - 1 : half + 1] = 0
    grid.setflags(write=False)
    return grid


@lru_cache(maxsize=4)
def _plane(half: int) -> tuple[Floats, Floats]:
    """Tangents of the pixels of a view of 90 degrees: to the right, and upwards."""
    at = ((2 * np.arange(half) + 1) / half - 1).astype(np.float32)
    return at, -at


def _draw(spot: Spot, look: Look, headings: list[int], half: int, seed: int) -> NDArray[np.uint32]:
    """The views side by side, ``[half, 4 half]``. A pixel is one 32-bit word, as of :func:`_words`."""
    right, up = _plane(half)
    towards = np.concatenate([np.radians(h) + np.arctan(right) for h in headings]).astype(np.float32)
    slant = np.tile(1 / np.sqrt(1 + right * right), len(headings)).astype(np.float32)
    distance, facade, along = _walls(spot.arms, towards, look, seed)
    depth = distance * slant
    rng = np.random.default_rng(seed)
    count = int(facade.max()) + 1
    tall = rng.uniform(*look.heights, count).astype(np.float32)[facade]
    paint = np.array(look.walls, dtype=np.float32)[rng.integers(len(look.walls), size=count)][facade]
    haze = (distance / FARTHEST)[:, None] ** 0.7 * 0.75
    wall = _words(paint + (np.array(look.sky[1]) - paint) * haze)
    pane = _words(np.array(look.window) + (np.array(look.sky[1]) - np.array(look.window)) * haze)

    picture = np.empty((half, len(headings) * half), dtype=np.uint32)
    lower = half // 2
    picture[:lower] = _sky(look, half)[:lower, None]
    picture[lower:] = _ground(spot, look, headings, half)
    height = up[:, None] * depth
    built = height < tall - EYE
    built[lower:] = height[lower:] > -EYE
    # No windows on the ground floor and below the eaves.
    panes = _panes(height[:lower], along, look)
    panes &= height[:lower] > look.floor - EYE
    panes &= height[:lower] < tall - EYE - 1
    np.copyto(picture, wall[None], where=built)
    np.copyto(picture[:lower], pane[None], where=panes)
    return picture


def _words(colours: NDArray[Any]) -> NDArray[np.uint32]:
    """Colours ``[..., 3]`` as words ``[...]`` that hold red, green, blue and a byte to spare."""
    padded = np.zeros((*colours.shape[:-1], 4), dtype=np.uint8)
    padded[..., :3] = colours
    return padded.view(np.uint32)[..., 0]


def _walls(
    arms: tuple[int, ...], towards: Floats, look: Look, seed: int
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Of each direction (radians): metres to the wall, the number of its facade, and metres along the street."""
    off = towards[None] - np.radians(np.array(arms, dtype=np.float32))[:, None]
    ahead, side = np.cos(off), np.sin(off)
    reach = np.where(ahead > 0, STREET / np.maximum(np.abs(side), STREET / FARTHEST), STREET)
    arm = reach.argmax(axis=0)
    pick = (arm, np.arange(len(towards)))
    distance = reach[pick].astype(np.float32)
    along = (distance * ahead[pick]).astype(np.float32)
    plot = np.floor((along + seed % 7) / look.front).astype(np.int64) + 2
    lane = 2 * arm + (side[pick] > 0)
    return distance, np.clip(plot, 0, 63) + 64 * lane, along


def _panes(height: Floats, along: Floats, look: Look) -> NDArray[np.bool_]:
    """Where windows are; ``height`` is over the eye, ``[rows, columns]``."""
    floors = height * np.float32(1 / look.floor)
    floors += np.float32(EYE / look.floor)
    floors -= np.floor(floors)
    bays = along / look.bay
    bays = np.abs(bays - np.floor(bays) - 0.5) < 0.23
    floors -= np.float32(0.55)
    np.abs(floors, out=floors)
    return (floors < np.float32(0.23)) & bays[None]


@lru_cache(maxsize=32)
def _sky(look: Look, half: int) -> NDArray[np.uint32]:
    share = np.minimum(1, np.arange(half) / (half / 2))[:, None]
    top, horizon = np.array(look.sky[0]), np.array(look.sky[1])
    return _words(top * (1 - share) + horizon * share)


def _ground(spot: Spot, look: Look, headings: list[int], half: int) -> NDArray[np.uint32]:
    """The lower half of the views as if nothing were built, ``[half / 2, 4 half]``."""
    right, up = _plane(half)
    forward = (EYE / -up[half // 2 :])[:, None]
    sideways = forward * right
    kinds = [_paving(spot, np.radians(heading), forward, sideways) for heading in headings]
    colours = _words(np.array([look.pavement, look.road, look.marking]))
    return colours[np.concatenate(kinds, axis=1)]


def _paving(spot: Spot, heading: float, forward: Floats, sideways: Floats) -> NDArray[np.uint8]:
    """What lies on the ground at each place of a view: 0 pavement, 1 road, 2 paint."""
    kind = np.zeros(sideways.shape, dtype=np.uint8)
    crossing = len(spot.arms) > 2
    dashes = CROSSWALK[1] + 2 if crossing else 0.0
    for arm in spot.arms:
        off = np.radians(arm) - heading
        cos, sin = np.float32(np.cos(off)), np.float32(np.sin(off))
        along = sideways * sin
        along += forward * cos
        across = sideways * cos
        across -= forward * sin
        np.abs(across, out=across)
        mine: NDArray[np.bool_] = across < ROAD
        mine &= along > -ROAD
        np.maximum(kind, mine.view(np.uint8), out=kind)
        mine &= along > dashes
        mine &= across < 0.15
        spots = np.flatnonzero(mine)
        kind.reshape(-1)[spots[along.reshape(-1)[spots] % 6 > 3]] = 2
        if crossing:
            stripes = np.flatnonzero((along > CROSSWALK[0]) & (along < CROSSWALK[1]) & (across < ROAD))
            kind.reshape(-1)[stripes[across.reshape(-1)[stripes] % 1.4 > 0.7]] = 2
    return kind


def view_with(spot: Spot, headings: list[int]) -> int:
    """Which of the views in these directions shows the landmark: ahead, to its side or behind, seen from the walker."""
    assert spot.sight is not None
    off = wrapped(spot.sight - spot.heading)
    side = spot.heading + (
        0 if abs(off) <= FRONT_RIGHT else 180 if abs(off) > BEHIND else 90 if off > 0 else -90
    )
    # With the published headings a corner lies in the middle of a view.
    aim = side if side in headings else spot.sight
    return min(range(len(headings)), key=lambda place: abs(wrapped(headings[place] - aim)))


def _sign(view: Pixels, spot: Spot, heading: int, look: Look) -> None:
    """Put a board with the landmark's name into a view, in place."""
    assert spot.sight is not None
    half = len(view)
    board = _board(spot.landmark.partition(" is on your ")[0], look.sign, half)
    height, width = board.shape[:2]
    off = np.radians(np.clip(wrapped(spot.sight - heading), -44, 44))
    left = int((np.tan(off) + 1) / 2 * half - width / 2)
    left = min(max(left, 2), half - width - 2)
    top = half // 3 - height // 2
    view[top : top + height, left : left + width] = board
    # Two posts down to the pavement.
    for x in (left + width // 8, left + width - width // 8):
        view[top + height : half * 5 // 8, x - 1 : x + 1] = np.array(look.sign) // 2


@lru_cache(maxsize=2048)
def _board(name: str, colour: tuple[int, int, int], half: int) -> Pixels:
    """A sign: the words of a name below each other, in white on ``colour``."""
    font = ImageFont.load_default(max(8, half // 13))
    words = "\n".join(name.split())
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    box = probe.multiline_textbbox((0, 0), words, font=font, align="center", spacing=2)
    pad = max(3, half // 40)
    width, height = (
        min(half - 4, int(box[2] - box[0]) + 2 * pad),
        min(half // 2, int(box[3] - box[1]) + 2 * pad),
    )
    image = Image.new("RGB", (width, height), colour)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width - 1, height - 1), outline=(255, 255, 255))
    draw.multiline_text(
        (pad - box[0], pad - box[1]), words, font=font, fill=(255, 255, 255), align="center", spacing=2
    )
    return np.asarray(image)
