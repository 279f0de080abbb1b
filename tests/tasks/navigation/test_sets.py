"""The named sets: their sizes, what they may not share, and that they are always the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.city import CITIES, HOME, POINTS, city, street_runs
from sftrl_fast.tasks.navigation.dataset import Route
from sftrl_fast.tasks.navigation.geo import bearing, metres
from sftrl_fast.tasks.navigation.plans import PLANS
from sftrl_fast.tasks.navigation.rules import wrapped
from sftrl_fast.tasks.navigation.sets import SETS, load_routes, made_routes, write_sets
from sftrl_fast.tasks.seeding import digest


def runs(route: Route) -> frozenset[tuple[int, ...]]:
    """The runs of streets of a route, found again from its places."""
    town = city(route.city)
    nodes = {town.at(node): node for node in range(len(town.nodes))}
    way = [nodes[spot.at] for spot in route.spots if spot.key]
    return street_runs([next(w[1] for w in town.ways[a] if w[0] == b) for a, b in pairwise(way)])


def test_sizes() -> None:
    sizes = {name: len(made_routes(name)) for name in SETS}
    assert sizes == {"train": 1000, "validation": 100, "test": 250, "cities": 250, "vln-mini": 18}


def test_no_run_of_streets_stands_in_two_sets_of_the_home_city() -> None:
    sets = [
        set().union(*(runs(route) for route in made_routes(name))) for name in ("train", "validation", "test")
    ]
    assert all(sets)
    assert not sets[0] & (sets[1] | sets[2])
    assert not sets[1] & sets[2]
    assert all(runs(route) for route in made_routes("test"))


def test_nine_other_cities_and_two_routes_each_in_the_mini_set() -> None:
    assert {route.city for route in made_routes("train")} == {HOME}
    away = Counter(route.city for route in made_routes("cities"))
    assert set(away) == set(CITIES) - {HOME}
    assert len(away) == 9
    assert set(away.values()) == {27, 28}
    mini = made_routes("vln-mini")
    assert set(Counter(route.city for route in mini).values()) == {2}
    assert set(mini) <= set(made_routes("cities"))


@pytest.mark.parametrize("name", SETS)
def test_routes_differ_and_have_4_to_20_points(name: str) -> None:
    routes = made_routes(name)
    assert len({route.name for route in routes}) == len(routes)
    assert len({tuple(s.at for s in route.spots if s.key) for route in routes}) == len(routes)
    for route in routes:
        assert POINTS[0] <= len(route.spots) <= POINTS[1]


def test_headings_and_sides_are_geometry() -> None:
    for route in made_routes("cities"):
        for a, b in pairwise(route.spots):
            assert metres(a.at, b.at) > 8
            assert abs(wrapped(bearing(a.at, b.at) - b.heading)) < 3
            if b.sight is not None:
                side = "left" if wrapped(b.sight - b.heading) < 0 else "right"
                assert b.landmark.endswith(f"is on your {side}")
        assert route.spots[-1].landmark.startswith(route.destination)


@pytest.mark.parametrize("name", CITIES)
def test_a_city_hangs_together(name: str) -> None:
    town = city(name)
    for node, ways in enumerate(town.ways):
        arms = sorted(heading for _, _, heading in ways)
        for other, street, _ in ways:
            assert any(back == node and same == street for back, same, _ in town.ways[other])
        gaps = [(b - a) % 360 for a, b in zip(arms, arms[1:] + arms[:1], strict=True)]
        assert len(arms) < 2 or min(gaps) > 29.9
    assert len(set(town.streets)) == len(town.streets)
    names = [place for place, _ in town.places.values()]
    assert len(set(names)) == len(names) > len(town.nodes) / 2


def test_plans_are_all_lived_in() -> None:
    assert {row.plan for row in CITIES.values()} == set(PLANS)
    assert len({row.look for row in CITIES.values()}) == len(CITIES)


def test_sets_are_the_same_in_another_process() -> None:
    program = (
        "from sftrl_fast.tasks.navigation.sets import made_routes\n"
        "from sftrl_fast.tasks.seeding import digest\n"
        "print(digest(repr(made_routes('vln-mini'))))"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(told) == digest(repr(made_routes("vln-mini")))


def test_written_sets_are_what_is_loaded(tmp_path: Path) -> None:
    assert write_sets(tmp_path / "sets") == {name: len(made_routes(name)) for name in SETS}
    assert load_routes("vln-mini", str(tmp_path / "sets")) == made_routes("vln-mini")
    with pytest.raises(UserError, match=r"holds no train\.jsonl"):
        load_routes("train", str(tmp_path))
