"""Cities: a street graph with named streets and places, and walks through it; and how one is made up, by a plan.

A made-up city is a function of its row in :data:`CITIES` alone; so is every route.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from sftrl_fast.tasks.navigation.dataset import Route, Spot, far_enough, in_between
from sftrl_fast.tasks.navigation.geo import LatLon, bearing, moved
from sftrl_fast.tasks.navigation.names import Names
from sftrl_fast.tasks.navigation.plans import PLANS, Plan
from sftrl_fast.tasks.navigation.rail import NO_LANDMARK
from sftrl_fast.tasks.navigation.rules import SHARP, wrapped
from sftrl_fast.tasks.seeding import digest, generator

PLACE_SHARE = 0.75
"""Of the crossings, how many have a named place."""
LEAST_ARM_ANGLE = 30.0
"""Streets that leave a crossing are at least so many degrees apart; of two closer ones the later is left out."""
SIGHT = 40.0
"""Degrees straight ahead and behind within which no landmark lies, so that its side is plain."""

LEGS = (3, 6)
"""Fewest and most blocks of a route."""
POINTS = (4, 20)
STREETS_ALIKE = 3
"""Routes of two sets have no run of so many streets in common; every route runs through that many."""
SHARPEST = 125.0
"""No turn is sharper, in degrees."""


@dataclass(frozen=True, slots=True)
class CityRow:
    """What a city is made of. ``look`` names the style its streets are drawn in."""

    name: str
    plan: str
    rows: int
    columns: int
    origin: LatLon
    look: str


CITIES = {
    row.name: row
    for row in (
        CityRow("Eastmoor", "grid", 26, 26, (40.70, -70.10), "brick"),
        CityRow("Port Arlen", "canals", 12, 18, (52.30, 2.90), "gabled"),
        CityRow("Corvane", "radial", 11, 18, (45.40, 7.10), "stone"),
        CityRow("Selby Hills", "slanted", 14, 14, (37.70, -124.60), "pastel"),
        CityRow("Tarnow Bay", "crescents", 14, 14, (-37.90, 146.80), "timber"),
        CityRow("Kesh", "organic", 15, 15, (28.50, 74.20), "sand"),
        CityRow("Lumen", "tilted", 14, 14, (51.40, -5.30), "terrace"),
        CityRow("Ondava", "banks", 14, 14, (47.10, 22.40), "concrete"),
        CityRow("Halewick", "grid", 14, 14, (22.20, 116.40), "neon"),
        CityRow("Mirador", "organic", 15, 15, (-34.50, -55.80), "white"),
    )
}
HOME = "Eastmoor"
"""The city whose routes are trained on."""


@dataclass(frozen=True, slots=True)
class City:
    """Crossing i lies at ``nodes[i]``; ``ways[i]`` lists what leaves it: neighbour, street, heading in degrees."""

    name: str
    origin: LatLon
    nodes: NDArray[np.float64]
    """Metres east and north of ``origin``, ``[n, 2]``."""
    ways: list[list[tuple[int, int, float]]]
    streets: list[str]
    places: dict[int, tuple[str, int]]
    """Crossing -> a place there and the heading from the crossing to it."""

    def at(self, node: int) -> LatLon:
        return moved(self.origin, *self.nodes[node].tolist())

    def heading(self, a: int, b: int) -> float:
        """Degrees from crossing ``a`` to ``b``."""
        east, north = self.nodes[b] - self.nodes[a]
        return float(np.degrees(np.arctan2(east, north)) % 360)

    def arms(self, node: int) -> tuple[int, ...]:
        return tuple(sorted(round(heading) % 360 for _, _, heading in self.ways[node]))

    def connect(self, a: int, b: int, street: int) -> None:
        """Lay a piece of ``street`` between two crossings, unless it leaves one of them too close to another."""
        if self._fits(a, b) and self._fits(b, a):
            self.ways[a].append((b, street, self.heading(a, b)))
            self.ways[b].append((a, street, self.heading(b, a)))

    def _fits(self, node: int, other: int) -> bool:
        heading = self.heading(node, other)
        return all(abs(wrapped(heading - there)) >= LEAST_ARM_ANGLE for _, _, there in self.ways[node])


@lru_cache(maxsize=16)
def city(name: str) -> City:
    """The city called ``name`` in :data:`CITIES`."""
    return build(CITIES[name])


def build(row: CityRow) -> City:
    """The city of a row; the same one each time."""
    rng = generator("navigation-city", row.name, 0)
    plan = PLANS[row.plan]
    nodes = plan.places(rng, row.rows, row.columns).reshape(-1, 2)
    names = Names(rng)
    pieces, count = _pieces(plan, row)
    made = City(row.name, row.origin, nodes, [[] for _ in nodes], [names.street() for _ in range(count)], {})
    for a, b, street in pieces:
        if rng.random() >= plan.missing:
            made.connect(a, b, street)
    for node in range(len(nodes)):
        if len(made.ways[node]) >= 2 and rng.random() < PLACE_SHARE:
            arms = made.arms(node)
            made.places[node] = names.place(), corner(arms, int(rng.integers(len(arms))))
    return made


def _pieces(plan: Plan, row: CityRow) -> tuple[list[tuple[int, int, int]], int]:
    """The pieces of streets (crossing, crossing, street) and the number of streets."""
    node = np.arange(row.rows * row.columns).reshape(row.rows, row.columns)
    along = np.column_stack([node, node[:, 0]]) if plan.closed else node
    found = [(a, b, r) for r in range(row.rows) for a, b in pairwise(along[r])]
    found += [(a, b, row.rows + c) for c in range(row.columns) for a, b in pairwise(node[:, c])]
    count = row.rows + row.columns
    if plan.diagonal:
        corners = np.diagonal(node)
        found += [(a, b, count) for a, b in pairwise(corners)]
        count += 1
    return [(int(a), int(b), street) for a, b, street in found], count


def corner(arms: tuple[int, ...], which: int) -> int:
    """The heading to a corner of a crossing: the middle between the street ``which`` and the next one clockwise."""
    width = (arms[(which + 1) % len(arms)] - arms[which]) % 360 or 360
    return round(arms[which] + width / 2) % 360


@dataclass(frozen=True, slots=True)
class Way:
    """Crossings one after the other, and the runs of streets in it."""

    nodes: tuple[int, ...]
    runs: frozenset[tuple[int, ...]]


def random_way(town: City, rng: np.random.Generator) -> Way | None:
    """A way that visits no crossing twice and ends at a place; turning is likelier than going on. None if the
    walk came to nothing, or ran through fewer than :data:`STREETS_ALIKE` streets."""
    nodes, streets = [int(rng.integers(len(town.nodes)))], []
    before = None
    for _ in range(int(rng.integers(*LEGS, endpoint=True))):
        ahead, weights = [], []
        for way in town.ways[nodes[-1]]:
            change = 0.0 if before is None else abs(wrapped(way[2] - before))
            if way[0] not in nodes and change <= SHARPEST:
                ahead.append(way)
                weights.append(2.0 if change > SHARP else 1.0)
        if not ahead:
            return None
        reach = list(accumulate(weights))
        node, street, before = ahead[bisect_right(reach, rng.random() * reach[-1])]
        nodes.append(node)
        streets.append(street)
    runs = street_runs(streets)
    return Way(tuple(nodes), runs) if runs and nodes[-1] in town.places else None


def street_runs(streets: list[int]) -> frozenset[tuple[int, ...]]:
    """Every run of :data:`STREETS_ALIKE` streets that a way takes one after the other, whichever way round."""
    turned = [street for i, street in enumerate(streets) if i == 0 or street != streets[i - 1]]
    runs = [tuple(turned[i : i + STREETS_ALIKE]) for i in range(len(turned) - STREETS_ALIKE + 1)]
    return frozenset(min(run, run[::-1]) for run in runs)


def route(town: City, way: Way, name: str, rng: np.random.Generator) -> Route | None:
    """The route along a way, with points in between; None if it has too few or too many, or nothing to see."""
    spots = _spots(town, way.nodes, rng)
    if not POINTS[0] <= len(spots) <= POINTS[1] or len({spot.landmark for spot in spots if spot.key}) < 3:
        return None
    return Route(name, town.name, town.places[way.nodes[-1]][0], spots)


def _spots(town: City, path: tuple[int, ...], rng: np.random.Generator) -> tuple[Spot, ...]:
    spots = [Spot(town.at(path[0]), int(rng.integers(360)), key=True, arms=town.arms(path[0]))]
    for node in path[1:]:
        goal = town.at(node)
        heading = round(bearing(spots[-1].at, goal)) % 360
        for place in in_between(spots[-1].at, goal, rng):
            if far_enough(place, spots[-1].at, goal):
                along = tuple(sorted((heading, (heading + 180) % 360)))
                at = round(place[0], 7), round(place[1], 7)
                spots.append(Spot(at, heading, key=False, arms=along))
        spots.append(_key_spot(town, node, goal, heading))
    return tuple(spots)


def _key_spot(town: City, node: int, at: LatLon, heading: int) -> Spot:
    landmark, sight = NO_LANDMARK, None
    if node in town.places:
        place, sight = town.places[node]
        landmark = f"{place} is on your {'left' if wrapped(sight - heading) < 0 else 'right'}"
    return Spot(at, heading, key=True, landmark=landmark, arms=town.arms(node), sight=sight)


def pretraining_city(number: int) -> City:
    """A small city of a random plan that no set uses: its walks are what a tiny model is pre-trained on."""
    rng = np.random.default_rng(digest("navigation-pretraining", number))
    plan = list(PLANS)[int(rng.integers(len(PLANS)))]
    return build(CityRow(f"pretraining {number}", plan, 9, 9, (0.0, 0.0), "brick"))
