"""A walk as one picture: the map with the rail and what was done at each point, the instructions, the views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sftrl_fast.tasks.navigation.city import CITIES, city
from sftrl_fast.tasks.navigation.dataset import Route, Spot
from sftrl_fast.tasks.navigation.geo import METRES_A_DEGREE, LatLon
from sftrl_fast.tasks.navigation.rail import Rail, has_no_landmark
from sftrl_fast.tasks.navigation.render import Pixels

MAP, PANEL, MARGIN = 900, 620, 70
THUMB, CAPTION = 180, 34
PAPER, STREET, INK, RAIL = (246, 244, 238), (208, 204, 194), (40, 44, 52), (70, 110, 190)
GOOD, LATE, BAD, NOT_YET = (30, 140, 70), (220, 140, 20), (200, 40, 40), (150, 150, 150)


@dataclass(frozen=True, slots=True)
class Tried:
    """The actions answered at a point, in order, and whether the last was right."""

    actions: tuple[str, ...]
    right: bool

    @property
    def colour(self) -> tuple[int, int, int]:
        return (
            NOT_YET
            if not self.actions
            else BAD
            if not self.right
            else GOOD
            if len(self.actions) == 1
            else LATE
        )


def draw(
    route: Route, rail: Rail, tried: Sequence[Tried], picture: Callable[[Spot], Pixels] | None
) -> Image.Image:
    """The sheet of a walk; ``tried[i]`` belongs to point i, and points beyond were not reached.

    ``picture`` gives the views of a spot; None leaves them out.
    """
    done = [*tried, *[Tried((), right=False)] * (len(rail.steps) - len(tried))]
    width = MAP + PANEL
    a_row = width // (THUMB + 8)
    rows = -(-len(rail.steps) // a_row) if picture else 0
    sheet = Image.new("RGB", (width, MAP + rows * (THUMB + CAPTION + 8)), (255, 255, 255))
    sheet.paste(_map(route, done))
    pen = ImageDraw.Draw(sheet)
    _panel(pen, route, rail, done)
    for number, (step, point) in enumerate(zip(rail.steps, done, strict=True)):
        if picture is not None:
            corner = (number % a_row * (THUMB + 8) + 4, MAP + number // a_row * (THUMB + CAPTION + 8) + 4)
            _thumb(sheet, pen, picture(step.spot), corner, f"{number + 1}  {step.action}", point)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class _Projection:
    """Places to pixels: the route fills the map, north is up."""

    def __init__(self, places: Sequence[LatLon]) -> None:
        points = np.array(places)
        self._origin = points.mean(axis=0)
        self._east = METRES_A_DEGREE * math.cos(math.radians(self._origin[0]))
        metres = np.array([self._metres(place) for place in places])
        low, high = metres.min(axis=0), metres.max(axis=0)
        self.scale = (MAP - 2 * MARGIN) / max(float((high - low).max()), 60.0)
        self._middle = (low + high) / 2

    def _metres(self, place: LatLon) -> tuple[float, float]:
        return (place[1] - self._origin[1]) * self._east, (place[0] - self._origin[0]) * METRES_A_DEGREE

    def __call__(self, place: LatLon) -> tuple[float, float]:
        east, north = self._metres(place)
        return MAP / 2 + (east - self._middle[0]) * self.scale, MAP / 2 - (
            north - self._middle[1]
        ) * self.scale


def _map(route: Route, done: Sequence[Tried]) -> Image.Image:
    at = _Projection([spot.at for spot in route.spots])
    image = Image.new("RGB", (MAP, MAP), PAPER)
    pen = ImageDraw.Draw(image)
    if route.city in CITIES:
        _streets(pen, route.city, at)
    line = [at(spot.at) for spot in route.spots]
    pen.line(line, fill=RAIL, width=6, joint="curve")
    x, y = line[0]
    heading = math.radians(route.spots[0].heading)
    pen.line((x, y, x + 34 * math.sin(heading), y - 34 * math.cos(heading)), fill=INK, width=3)
    for number, (spot, (x, y), point) in enumerate(zip(route.spots, line, done, strict=True)):
        size = 13 if spot.key else 8
        pen.ellipse(
            (x - size, y - size, x + size, y + size), fill=point.colour, outline=(255, 255, 255), width=2
        )
        if spot.key:
            pen.text((x, y), str(number + 1), font=_font(14), fill=(255, 255, 255), anchor="mm")
        if not has_no_landmark(spot.landmark):
            name = spot.landmark.partition(" is on your ")[0]
            sight = math.radians(spot.sight if spot.sight is not None else 90)
            place = (x + 30 * math.sin(sight), y - 30 * math.cos(sight))
            pen.text(place, name, font=_font(15), fill=INK, anchor="lm" if math.sin(sight) > 0 else "rm",
                     stroke_width=2, stroke_fill=PAPER)  # fmt: skip
    pen.text((12, 10), f"{route.name}  ({route.city}, north is up)", font=_font(18), fill=INK)
    pen.line((20, MAP - 24, 20 + 100 * at.scale, MAP - 24), fill=INK, width=3)
    pen.text((20, MAP - 46), "100 m", font=_font(14), fill=INK)
    return image


def _streets(pen: ImageDraw.ImageDraw, name: str, at: _Projection) -> None:
    town = city(name)
    for node, ways in enumerate(town.ways):
        for other, _, _ in ways:
            if node < other:
                pen.line(
                    (*at(town.at(node)), *at(town.at(other))), fill=STREET, width=max(3, int(9 * at.scale))
                )


def _panel(pen: ImageDraw.ImageDraw, route: Route, rail: Rail, done: Sequence[Tried]) -> None:
    y = 12
    for number, line in enumerate(rail.instructions, start=1):
        pen.text((MAP + 14, y), f"{number}. {line}", font=_font(14), fill=INK)
        y += 22
    y += 14
    for number, (step, point) in enumerate(zip(rail.steps, done, strict=True), start=1):
        said = " then ".join(point.actions) or "not reached"
        pen.text((MAP + 14, y), f"{number:2}. {said}", font=_font(14), fill=point.colour)
        if point.actions and not point.right:
            pen.text((MAP + 380, y), f"right: {step.action}", font=_font(14), fill=INK)
        y += 20
    pen.text((MAP + 14, y + 14), f"Destination: {route.destination}", font=_font(15), fill=INK)


def _thumb(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    pixels: Pixels,
    corner: tuple[int, int],
    caption: str,
    point: Tried,
) -> None:
    x, y = corner
    sheet.paste(Image.fromarray(pixels).resize((THUMB, THUMB), Image.Resampling.LANCZOS), corner)
    pen.text((x, y + THUMB + 4), caption, font=_font(12), fill=INK)
    pen.text((x, y + THUMB + 18), (point.actions or ("",))[-1][:28], font=_font(12), fill=point.colour)
