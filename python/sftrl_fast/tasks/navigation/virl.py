"""The published V-IRL data set as routes: reads its folder, checks it, says route by route what cannot be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation import plain_pickle
from sftrl_fast.tasks.navigation.dataset import Route, Spot, checked_place, far_enough, in_between
from sftrl_fast.tasks.navigation.geo import EARTH_RADIUS, LatLon, metres
from sftrl_fast.tasks.navigation.rail import NO_LANDMARK
from sftrl_fast.tasks.navigation.rules import COMPASS, compass
from sftrl_fast.tasks.seeding import generator

ROUTES_FILE, PANOS_FILE, VIEWS_FOLDER = "route_infos.json", "gps_pano_mapping.pkl", "street_views"
MAX_ROUTES_BYTES = 256 * 2**20
NEAREST_PANO = 20.0
"""Metres to the panorama that stands for a point (published setting)."""

_BLOCK = re.compile(r"\{([^{}]*)\}")
_LINE = re.compile(r'^\s*"([^"]*)"\s*:\s*"(.*?)"\s*,?\s*$')
_HEADING = re.compile(r"^\s*(-?\d{1,6})\s*\(\s*([a-z -]+?)\s*\)\s*$", re.IGNORECASE)
_PANO_NAME = re.compile(r"^[\w-]{1,120}$", re.ASCII)


@dataclass(slots=True)
class Import:
    """What a folder gave."""

    routes: list[Route] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """A sentence each: what was left out and why."""
    has_views: bool = False


class _Fault(ValueError):
    """Why a route cannot be used."""


def read_folder(folder: Path, city: str, check_pano: Callable[[str], str] | None = None) -> Import:
    """The routes of a published folder. ``check_pano`` says what is wrong with a panorama's picture, if anything.

    ``UserError`` if the folder lacks a file, or one is not what it should be as a whole. A route that cannot be used
    is left out and told in ``faults``.
    """
    infos = _read_infos(folder / ROUTES_FILE)
    done = Import(has_views=check_pano is not None)
    panos = _Panos(plain_pickle.load(folder / PANOS_FILE), done.faults)
    routes = _route_list(infos, done.faults)
    known: dict[str, str] = {}
    for number, info in enumerate(routes):
        try:
            route = _route(info, f"{city}-{number:04}", city, panos)
            for spot in route.spots if check_pano else ():
                if check_pano and spot.pano not in known:
                    known[spot.pano] = check_pano(spot.pano)
                if known[spot.pano]:
                    raise _Fault(known[spot.pano])
        except _Fault as fault:
            done.faults.append(f"route {number}: {fault}")
        else:
            done.routes.append(route)
    return done


def _read_infos(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_ROUTES_BYTES:
            raise UserError(f"{path.name} has {size:,} bytes; at most {MAX_ROUTES_BYTES:,} are read")
        return json.loads(path.read_text("utf-8"))
    except OSError as fault:
        raise UserError(f"{str(path)!r} cannot be read: {fault.strerror}") from None
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, UserError):
            raise
        raise UserError(f"{path.name} is not valid JSON: {str(fault)[:100]}") from None


def _route_list(infos: Any, faults: list[str]) -> list[Any]:
    if not isinstance(infos, list) or len(infos) != 2 or not isinstance(infos[0], list):
        raise UserError(f"{ROUTES_FILE} must be a list of two, the routes and their number")
    routes, count = infos
    if count != len(routes):
        faults.append(f"{ROUTES_FILE}: says {count!r:.20} routes and holds {len(routes)}")
    return routes


class _Panos:
    """Panoramas by place."""

    def __init__(self, mapping: Any, faults: list[str]) -> None:
        if not isinstance(mapping, dict):
            raise UserError(
                f"{PANOS_FILE} holds a {type(mapping).__name__}; needed: a dict of places to names"
            )
        self.places: list[LatLon] = []
        self.names: list[str] = []
        for place, name in mapping.items():
            try:
                self.places.append(checked_place(place))
            except ValueError as fault:
                faults.append(f"{PANOS_FILE}: {fault}")
                continue
            if not isinstance(name, str) or not _PANO_NAME.match(name):
                self.places.pop()
                faults.append(f"{PANOS_FILE}: {name!r:.60} is no panorama's name")
                continue
            self.names.append(name)
        if not self.places:
            raise UserError(f"{PANOS_FILE} holds no panorama")
        self._tree = cKDTree(_on_sphere(np.array(self.places)))

    def nearest(self, place: LatLon) -> tuple[LatLon, str] | None:
        """Place and name of the panorama for ``place``; None if there is none within :data:`NEAREST_PANO`."""
        _, index = self._tree.query(_on_sphere(np.array([place]))[0])
        found = self.places[int(index)]
        return (found, self.names[int(index)]) if metres(place, found) <= NEAREST_PANO else None


def _on_sphere(places: np.ndarray) -> np.ndarray:
    """Metres from the middle of the earth, so that the straight distance orders as the one over the ground."""
    lat, lon = np.radians(places).T
    return EARTH_RADIUS * np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _route(info: Any, name: str, city: str, panos: _Panos) -> Route:
    start = _place(_get(info, "start_place", "relocated_geocode"), "start_place.relocated_geocode")
    ways = _get(info, "route_results", "geocode_list")
    if not isinstance(ways, list) or not ways:
        raise _Fault("route_results.geocode_list holds no points")
    keys = [_place(place, f"route_results.geocode_list[{i}]") for i, place in enumerate(ways)]
    blocks = _blocks(_get(info, "milestone_info"))
    if len(blocks) != len(keys):
        raise _Fault(f"milestone_info has {len(blocks)} blocks for {len(keys)} points")
    rng = generator("navigation-import", name, 0)
    at, pano = _relocated(panos, start, "the start")
    spots = [Spot(at, _start_heading(info, rng), key=True, pano=pano)]
    for i, (key, block) in enumerate(zip(keys, blocks, strict=True)):
        heading = _heading(block.get("to_next_intersection_heading"), i)
        goal, pano = _relocated(panos, key, f"point {i + 1}")
        for candidate in in_between(spots[-1].at, goal, rng):
            found = panos.nearest(candidate)
            if found and far_enough(found[0], spots[-1].at, goal):
                spots.append(Spot(found[0], heading, key=False, pano=found[1]))
        landmark = block.get("landmarks") or NO_LANDMARK
        spots.append(Spot(goal, heading, key=True, landmark=landmark, pano=pano))
    destination = _get(info, "dest_place", "name")
    if not isinstance(destination, str):
        raise _Fault(f"dest_place.name is {destination!r:.40}; needed: a text")
    return Route(name, city, destination, tuple(spots))


def _get(info: Any, *keys: str) -> Any:
    for place, key in enumerate(keys):
        if not isinstance(info, dict) or key not in info:
            raise _Fault(f"{'.'.join(keys[: place + 1])} is missing")
        info = info[key]
    return info


def _place(value: Any, where: str) -> LatLon:
    if isinstance(value, str):
        raise _Fault(f"{where} is the address {value!r:.60}; needed: latitude and longitude")
    try:
        return checked_place(value)
    except ValueError as fault:
        raise _Fault(f"{where}: {fault}") from None


def _relocated(panos: _Panos, place: LatLon, what: str) -> tuple[LatLon, str]:
    found = panos.nearest(place)
    if found is None:
        raise _Fault(f"no panorama lies within {NEAREST_PANO:g} m of {what}")
    return found


def _blocks(text: Any) -> list[dict[str, str]]:
    """The blocks of ``milestone_info``; lines that are not ``"key": "value"`` are passed over, as published."""
    if not isinstance(text, str):
        raise _Fault("milestone_info is no text")
    matches = (map(_LINE.match, block.splitlines()) for block in _BLOCK.findall(text))
    return [{found[1]: found[2] for found in lines if found} for lines in matches]


def _heading(text: str | None, block: int) -> int:
    where = f"milestone_info, block {block + 1}: to_next_intersection_heading"
    found = _HEADING.match(text or "")
    if text is None or not found:
        raise _Fault(f"{where} is {text!r:.40}; needed: such as '177 (south)'")
    heading, word = int(found[1]), re.sub(r"[ -]", "", found[2].lower())
    if not 0 <= heading <= 360 or word not in COMPASS:
        raise _Fault(f"{where} is {text!r:.40}; needed: 0 to 360 and a compass word")
    if word != compass(heading):
        raise _Fault(f"{where} is {text!r:.40}, but {heading} degrees are {compass(heading)}")
    return heading % 360


def _start_heading(info: Any, rng: np.random.Generator) -> int:
    """Whole degrees; drawn at random where the data has none or 0, as published."""
    value = info.get("init_heading")
    if value in (None, 0):
        return int(rng.integers(360))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Fault(f"init_heading is {value!r:.40}; needed: degrees")
    if not -360 <= value <= 360:
        raise _Fault(f"init_heading is {value!r:.40}; needed: -360 to 360")
    return round(value) % 360
