"""The named sets of routes: which city, how many, and what they may not share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.city import CITIES, HOME, City, city, random_way, route
from sftrl_fast.tasks.navigation.dataset import Route, read_routes, write_routes
from sftrl_fast.tasks.seeding import generator

HOME_SETS = {"train": 1000, "validation": 100, "test": 250}
"""Sets of the home city, in the order they are drawn: none shares a run of streets with one before it."""
AWAY = tuple(name for name in CITIES if name != HOME)
AWAY_ROUTES = 250
PATIENCE = 20_000
"""Walks one after another that came to nothing new, after which a city has no more routes."""
MINI_ROUTES_A_CITY = 2

SETS = (*HOME_SETS, "cities", "vln-mini")
"""``cities``: routes in the other nine cities. ``vln-mini``: two of them a city."""

_Walks = Iterator[tuple[Route, frozenset[tuple[int, ...]]]]


def load_routes(name: str, data: str = "") -> tuple[Route, ...]:
    """The routes of set ``name``: from the generator, or from ``data``/``name``.jsonl.

    ``UserError`` if that file is missing or no route file, or holds no route.
    """
    if not data:
        return made_routes(name)
    path = Path(data) / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"data={data!r} holds no {path.name}; `sftrl-fast data` writes such folders")
    routes = read_routes(path)
    if not routes:
        raise UserError(f"data={str(path)!r} holds no route")
    return routes


@lru_cache(maxsize=8)
def made_routes(name: str) -> tuple[Route, ...]:
    """The routes of set ``name`` in the made-up cities."""
    if name in HOME_SETS:
        return _home()[name]
    if name == "vln-mini":
        counts = [MINI_ROUTES_A_CITY] * len(AWAY)
    else:
        counts = [AWAY_ROUTES // len(AWAY) + (i < AWAY_ROUTES % len(AWAY)) for i in range(len(AWAY))]
    return tuple(
        found for place, count in zip(AWAY, counts, strict=True) for found in routes_of(city(place), count)
    )


@lru_cache(maxsize=1)
def _home() -> dict[str, tuple[Route, ...]]:
    sets, taken = {}, set[tuple[int, ...]]()
    for name, count in HOME_SETS.items():
        used: set[tuple[int, ...]] = set()
        sets[name] = tuple(islice(_routes(city(HOME), name, taken, used), count))
        taken |= used
    return sets


def routes_of(town: City, count: int) -> tuple[Route, ...]:
    """``count`` random routes of a city, or as many as it has."""
    return tuple(islice(_routes(town, "away", set(), set()), count))


def _routes(
    town: City, name: str, taken: set[tuple[int, ...]], used: set[tuple[int, ...]]
) -> Iterator[Route]:
    """Random routes of a city, no two over the same crossings and none with a run of streets that is ``taken``. Their
    own runs are added to ``used``."""
    number = misses = 0
    rng = generator("navigation-routes", f"{town.name}/{name}", 0)
    seen: set[tuple[int, ...]] = set()
    while misses < PATIENCE:
        misses += 1
        way = random_way(town, rng)
        if way is None or way.nodes in seen or not taken.isdisjoint(way.runs):
            continue
        found = route(town, way, f"{town.name}-{name}-{number:04}", rng)
        if found is not None:
            number, misses = number + 1, 0
            seen.add(way.nodes)
            used |= way.runs
            yield found


def write_sets(folder: Path) -> dict[str, int]:
    """Write every set to ``folder``, a file each; the number of routes in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        write_routes(folder / f"{name}.jsonl", made_routes(name))
    return {name: len(made_routes(name)) for name in SETS}
