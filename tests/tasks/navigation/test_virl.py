"""The published data set, and what can be wrong with it."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.rail import build_rail
from sftrl_fast.tasks.navigation.virl import Import, read_folder

Published = SimpleNamespace
SOME_HEADING = re.compile(r"\d+ \(\w+\)")


def read(published: Published, folder: Path, records: list[Any], mapping: Any = None) -> Import:
    return read_folder(published.write(folder, records, mapping or published.panos), "testville")


def heading(text: str) -> Callable[[str], str]:
    """Put ``text`` in place of the first heading of a ``milestone_info``."""
    return lambda info: SOME_HEADING.sub(text, info, count=1)


def test_routes_come_back_with_their_instructions_and_actions(published: Published, tmp_path: Path) -> None:
    found = read(published, tmp_path, published.records())
    assert found.faults == []
    assert [route.name for route in found.routes] == [f"testville-{i:04}" for i in range(4)]
    for imported, made in zip(found.routes, published.routes, strict=True):
        for language in ("absolute", "relative"):
            ours, theirs = build_rail(made, language), build_rail(imported, language)
            assert theirs.instructions == ours.instructions
            assert [s.action for s in theirs.steps if s.spot.key] == [
                s.action for s in ours.steps if s.spot.key
            ]
            assert [s.observation for s in theirs.steps if s.spot.key] == [
                s.observation for s in ours.steps if s.spot.key
            ]
        assert all(published.panos[spot.at] == spot.pano for spot in imported.spots)


def test_points_in_between_stand_at_panoramas_and_keep_their_distance(
    published: Published, tmp_path: Path
) -> None:
    found = read(published, tmp_path, published.records())
    kept = sum(not spot.key for route in found.routes for spot in route.spots)
    assert kept > 0
    bare = {
        spot.at: published.panos[spot.at] for route in published.routes for spot in route.spots if spot.key
    }
    without = read(published, tmp_path / "bare", published.records(), bare)
    assert without.faults == []
    assert not any(not spot.key for route in without.routes for spot in route.spots)


def test_importing_twice_gives_the_same(published: Published, tmp_path: Path) -> None:
    records = published.records()
    for item in records:
        item["init_heading"] = 0
    first, second = read(published, tmp_path / "a", records), read(published, tmp_path / "b", records)
    assert first == second
    assert len({route.spots[0].heading for route in first.routes}) > 1


def spoil(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(item: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for key in way:
            item = item[key]
        if value is None:
            del item[last]
        else:
            item[last] = value(item[last]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (spoil("start_place", None), "start_place is missing"),
        (spoil("start_place.relocated_geocode", "5 Main St"), "is the address '5 Main St'"),
        (spoil("start_place.relocated_geocode", [91.0, 0.0]), "latitude -90 to 90"),
        (spoil("start_place.relocated_geocode", [float("nan"), 0.0]), "latitude -90 to 90"),
        (spoil("start_place.relocated_geocode", [1.0]), "no pair"),
        (spoil("start_place.relocated_geocode", [10.0, 10.0]), "no panorama lies within 20 m of the start"),
        (spoil("route_results.geocode_list", []), "geocode_list holds no points"),
        (spoil("route_results.geocode_list", lambda keys: keys[:-1]), "blocks for"),
        (spoil("route_results.geocode_list", lambda keys: [*keys[:-1], [0.0, 0.0]]), "within 20 m of point"),
        (spoil("route_results.geocode_list", lambda keys: [*keys[:-1], [0.0, 181.0]]), "longitude -180 to 180"),
        (spoil("milestone_info", 7), "milestone_info is no text"),
        (spoil("milestone_info", ""), "has 0 blocks"),
        (spoil("milestone_info", heading("somewhere")), "block 1: .*somewhere"),
        (spoil("milestone_info", heading("400 (north)")), "block 1: .*0 to 360"),
        (spoil("milestone_info", heading("90 (up)")), "a compass word"),
        (spoil("milestone_info", heading("90 (west)")), "90 degrees are east"),
        (spoil("milestone_info", lambda text: text.replace("to_next", "next", 1)), "block 1: .*is None"),
        (spoil("init_heading", "north"), "init_heading is 'north'"),
        (spoil("init_heading", 1e9), "init_heading is"),
        (spoil("dest_place.name", 5), r"dest_place\.name is 5"),
    ],
)  # fmt: skip
def test_a_route_that_cannot_be_used_is_told_and_left_out(
    published: Published, tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    records = published.records()
    good = copy.deepcopy(records)
    change(records[2])
    found = read(published, tmp_path, records)
    assert len(found.faults) == 1
    assert re.search(f"^route 2: .*{told}", found.faults[0]), found.faults
    assert [route.name for route in found.routes] == ["testville-0000", "testville-0001", "testville-0003"]
    assert len(read(published, tmp_path / "good", good).routes) == 4


@pytest.mark.parametrize("item", [None, 3, "route", [], {}])
def test_what_is_no_route_at_all_is_told(published: Published, tmp_path: Path, item: Any) -> None:
    found = read(published, tmp_path, [item, published.records()[0]])
    assert len(found.faults) == len(found.routes) == 1


def test_bad_entries_of_the_mapping_are_told_and_not_used(published: Published, tmp_path: Path) -> None:
    mapping = {
        **published.panos,
        (95.0, 0.0): "far",
        (1.0, 1.0): "../../etc/passwd",
        "here": "a",
        (2.0, 2.0): 5,
    }
    found = read(published, tmp_path, [published.records()[0]], mapping)
    assert len(found.faults) == 4
    assert sum("../../etc/passwd" in fault for fault in found.faults) == 1
    assert len(found.routes) == 1


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("route_infos.json", "{", "not valid JSON"),
        ("route_infos.json", "[" * 100_000, "not valid JSON"),
        ("route_infos.json", "[[], 0, 1]", "list of two"),
        ("route_infos.json", '{"routes": []}', "list of two"),
        ("gps_pano_mapping.pkl", "(l.", "holds a list"),
        ("gps_pano_mapping.pkl", "(d.", "holds no panorama"),
        ("gps_pano_mapping.pkl", "", "damaged"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused(
    published: Published, tmp_path: Path, name: str, text: str, told: str
) -> None:
    published.write(tmp_path, [published.records()[0]], published.panos)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        read_folder(tmp_path, "testville")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*cannot be read"):
        read_folder(tmp_path, "testville")


def test_a_route_file_of_500_megabytes_is_refused_unread(published, tmp_path: Path) -> None:
    published.write(tmp_path, [], published.panos)
    os.truncate(tmp_path / "route_infos.json", 500 * 2**20)
    with pytest.raises(UserError, match="524,288,000 bytes"):
        read_folder(tmp_path, "testville")


def test_a_wrong_count_is_told(published: Published, tmp_path: Path) -> None:
    published.write(tmp_path, [published.records()[0]], published.panos)
    (tmp_path / "route_infos.json").write_text(json.dumps([[published.records()[0]], 1000]))
    found = read_folder(tmp_path, "testville")
    assert found.faults == ["route_infos.json: says 1000 routes and holds 1"]
    assert len(found.routes) == 1
