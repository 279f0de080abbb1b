"""Routes, and the file they are kept in: what the city generator makes and ``data import-virl`` writes.

A file is JSON lines: a header, then a route a line. Only what cannot be computed is stored; words, turns and
instructions come from :mod:`~sftrl_fast.tasks.navigation.rail`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.geo import LatLon, between, metres

FORMAT = "sftrl-rails"
VERSION = 1
MAX_FILE_BYTES = 256 * 2**20
MAX_POINTS = 1000

STRAIGHT_LINE_LENGTH = 5
"""In-between points considered on the way to a key point (published setting)."""
DROP_RATE = 0.5
NEAR_KEY = 5.0
"""Metres to a key point within which no in-between point is considered."""
LEAST_GAP = 8.0
"""Metres an in-between point keeps from the point before it and from the key point."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a route."""

    at: LatLon
    heading: int
    """Whole degrees, 0..359: where the walker faces on arrival; at the start, before the first turn."""
    key: bool
    """The start, an intersection or the destination; else a point on the way."""
    landmark: str = ""
    """Of a key point after the start: such as ``X is on your left``, or ``No landmark nearby``."""
    arms: tuple[int, ...] = ()
    """Headings of the streets that leave here, for drawing; empty where the views are photographs."""
    sight: int | None = None
    """Heading to the landmark from here, for drawing."""
    pano: str = ""
    """Name of the panorama, where the views are photographs."""


@dataclass(frozen=True, slots=True)
class Route:
    """A walk. The first spot is the start, the last the destination."""

    name: str
    city: str
    destination: str
    spots: tuple[Spot, ...]


def in_between(a: LatLon, b: LatLon, rng: np.random.Generator) -> list[LatLon]:
    """Places on the way from ``a`` to the key point ``b`` that are candidates: evenly spaced, half of them
    dropped at random, none if ``b`` is near."""
    if metres(a, b) <= NEAR_KEY:
        return []
    shares = [place / (STRAIGHT_LINE_LENGTH + 1) for place in range(1, STRAIGHT_LINE_LENGTH + 1)]
    return [between(a, b, share) for share in shares if rng.random() >= DROP_RATE]


def far_enough(place: LatLon, before: LatLon, key: LatLon) -> bool:
    return metres(place, before) > LEAST_GAP and metres(place, key) > LEAST_GAP


def write_routes(path: Path, routes: Sequence[Route]) -> None:
    """Write ``routes`` to ``path``, which is replaced."""
    with path.open("w", encoding="utf-8") as file:
        print(json.dumps({"format": FORMAT, "version": VERSION, "routes": len(routes)}), file=file)
        for route in routes:
            record = asdict(route)
            record["spots"] = [_without_defaults(spot) for spot in record["spots"]]
            print(json.dumps(record, ensure_ascii=False, separators=(",", ":")), file=file)


def _without_defaults(spot: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spot.items() if value not in ("", (), None)}


def read_routes(path: Path) -> tuple[Route, ...]:
    """The routes of a file. ``UserError`` naming the line for anything but what :func:`write_routes` writes."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(
                f"data={str(path)!r} has {size:,} bytes; a route file has at most {MAX_FILE_BYTES:,}"
            )
        with path.open(encoding="utf-8") as file:
            return tuple(_parse(path, file))
    except OSError as fault:
        raise UserError(f"data={str(path)!r} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"data={str(path)!r} is not UTF-8 text") from None


def _parse(path: Path, lines: Iterator[str]) -> Iterator[Route]:
    count = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if number == 1:
                if (record["format"], record["version"]) != (FORMAT, VERSION):
                    raise ValueError(f"needed: {FORMAT} of version {VERSION}")
                count = int(record["routes"])
                continue
            yield _route(record)
        except KeyError as fault:
            raise UserError(f"data={str(path)!r}, line {number} lacks {fault}") from None
        except (ValueError, TypeError, RecursionError) as fault:
            raise UserError(f"data={str(path)!r}, line {number} is no route: {str(fault)[:120]}") from None
        count -= 1
    if count:
        raise UserError(
            f"data={str(path)!r} is cut short or was added to: its header counts {count:+d} more routes"
        )


def _route(record: Any) -> Route:
    spots = tuple(_spot(spot) for spot in record["spots"])
    if not 2 <= len(spots) <= MAX_POINTS or not (spots[0].key and spots[-1].key):
        raise ValueError(f"{len(spots)} spots; needed: 2 to {MAX_POINTS}, first and last of them key points")
    return Route(_text(record["name"]), _text(record["city"]), _text(record["destination"]), spots)


def _spot(record: Any) -> Spot:
    if not isinstance(record, dict):
        raise ValueError(f"{record!r:.40} is no spot")
    sight = record.get("sight")
    return Spot(
        checked_place(record["at"]),
        _heading(record["heading"]),
        bool(record["key"]),
        _text(record.get("landmark", "")),
        tuple(_heading(arm) for arm in record.get("arms", ())),
        None if sight is None else _heading(sight),
        _text(record.get("pano", "")),
    )


def checked_place(value: Any) -> LatLon:
    """``value`` as latitude and longitude; ``ValueError`` if it is no such pair."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{value!r:.60} is no pair of latitude and longitude")
    for number, limit in zip(value, (90, 180), strict=True):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{value!r:.60} is no pair of numbers")
        if not math.isfinite(number) or abs(number) > limit:
            raise ValueError(f"{value!r:.60} is no place: latitude -90 to 90, longitude -180 to 180")
    return float(value[0]), float(value[1])


def _heading(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 360:
        raise ValueError(f"heading {value!r:.40}; needed: a whole number of degrees, 0 to 359")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value
