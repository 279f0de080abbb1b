"""``data`` and ``play``."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from sftrl_fast.cli import main
from sftrl_fast.cli.data import SETS as DATA_SETS
from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.sets import SETS, made_routes
from sftrl_fast.tasks.navigation.sheet import BAD, GOOD, LATE, NOT_YET, Tried


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_verb_offers_the_sets_there_are() -> None:
    assert DATA_SETS == SETS


def test_cities_are_ready_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "cities", "--out", str(tmp_path / "new" / "sets")]) == 0
    assert "1,000 routes" in told(capsys)[0]
    env = gymnasium.make(
        "sftrl/navigation-text-absolute-train-v1", data=str(tmp_path / "new" / "sets")
    ).unwrapped
    assert env.routes == made_routes("train")
    (tmp_path / "file").touch()
    assert main(["data", "cities", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in told(capsys)[1]


def folder(tmp_path: Path, *, records: Any = None) -> Path:
    """A published folder of one route over three panoramas, 64 x 32, with north in the middle."""
    places = [(40.0, -70.0), (40.0005, -70.0), (40.0005, -69.999)]
    blocks = (
        '{\n"landmarks": "Blue Fox Cafe is on your left",\n"to_next_intersection_heading": "0 (north)",\n},'
        '{\n"landmarks": "Old Oak Hotel is on your right",\n"to_next_intersection_heading": "90 (east)",\n}'
    )
    route = {
        "start_place": {"relocated_geocode": places[0]},
        "init_heading": 90,
        "dest_place": {"name": "Old Oak Hotel"},
        "route_results": {"geocode_list": places[1:]},
        "milestone_info": blocks,
    }
    path = tmp_path / "published"
    (path / "street_views").mkdir(parents=True)
    (path / "route_infos.json").write_text(json.dumps([[route] if records is None else records(route), 1]))
    (path / "gps_pano_mapping.pkl").write_bytes(
        pickle.dumps({place: f"p{i}" for i, place in enumerate(places)})
    )
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]], dtype=np.uint8)
    # Columns from south over west, north and east: each colour fills an eighth on either side of its direction.
    columns = np.roll(colours.repeat(16, axis=0), -8, axis=0)
    for i in range(3):
        Image.fromarray(np.broadcast_to(columns[None], (32, 64, 3)).copy()).save(
            path / "street_views" / f"p{i}.jpg", quality=98
        )
        (path / "street_views" / f"p{i}.metadata.json").write_text('{"rotation": 0}')
    return path


def test_an_imported_route_is_walked_with_its_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "import-virl", str(folder(tmp_path)), "--out", str(out), "--size", "64"]) == 0
    assert "routes    1" in told(capsys)[0]
    env = gymnasium.make("sftrl/navigation-image-absolute-train-v1", data=str(out), size=64).unwrapped
    observation, info = env.reset(options={"index": 0})
    assert info["city"] == "New York"
    # Facing east: front east, right south / back west, left north.
    names = {"south": [200, 0, 0], "west": [0, 200, 0], "north": [0, 0, 200], "east": [200, 200, 0]}
    image = observation["image"].astype(int)
    for view, (row, column) in {
        "east": (16, 16),
        "south": (16, 48),
        "west": (48, 16),
        "north": (48, 48),
    }.items():
        assert np.abs(image[row, column] - names[view]).max() < 40, view
    for answer in env.demonstration(0):
        *_, terminated, _, _ = env.step(answer)
    assert terminated
    env = gymnasium.make(
        "sftrl/navigation-image-absolute-train-v1", data=str(out), size=64, views="reference"
    )
    with pytest.raises(UserError, match="import them with --views reference"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("p1.jpg", b"GIF89a not a picture", "p1.jpg is no picture"),
        ("p1.jpg", b"", "p1.jpg is no picture"),
        ("p1.jpg", None, "p1.jpg is missing"),
        ("p1.metadata.json", None, "p1.metadata.json is missing"),
        ("p1.metadata.json", b"{", "p1.metadata.json holds no rotation"),
        ("p1.metadata.json", b'{"rotation": "north"}', "p1.metadata.json: rotation is 'north'"),
    ],
)
def test_a_route_over_a_bad_panorama_is_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, fault: str
) -> None:
    data, out = folder(tmp_path), tmp_path / "out"
    path = data / "street_views" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert main(["data", "import-virl", str(data), "--out", str(out)]) == 2
    _, err = told(capsys)
    assert f"left out: route 0: {fault}" in err
    assert "gave no route that can be used" in err
    # In words the panoramas are not needed.
    assert main(["data", "import-virl", str(data), "--out", str(out), "--views", "none"]) == 0


def test_truncated_and_oddly_shaped_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path)
    path = data / "street_views" / "p2.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert main(["data", "import-virl", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "p2.jpg is no picture" in told(capsys)[1]
    Image.new("L", (64, 64)).save(path)
    assert main(["data", "import-virl", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "64 x 64 pixels; needed: a panorama" in told(capsys)[1]
    Image.new("L", (64, 32)).save(path)
    assert main(["data", "import-virl", str(data), "--out", str(tmp_path / "out")]) == 0


def test_a_hostile_folder_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    data = folder(tmp_path)
    (data / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(Attack()))
    assert main(["data", "import-virl", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "'posix system'" in told(capsys)[1]
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


def test_faults_are_kept_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path, records=lambda route: [*[{}] * 30, route])
    assert (
        main(
            [
                "data",
                "import-virl",
                str(data),
                "--out",
                str(tmp_path / "out"),
                "--set",
                "test",
                "--size",
                "64",
            ]
        )
        == 0
    )
    out, err = told(capsys)
    assert "... and 11 more" in err
    assert "left out  31" in out
    assert len((tmp_path / "out" / "test.faults.txt").read_text().splitlines()) == 31


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_walk_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "walk.png"
    type_in(monkeypatch, "s", "f", "f", "f", "turn_direction(west)")
    assert main(["play", "navigation", "--index", "3", "--map", str(path)]) == 0
    out, _ = told(capsys)
    assert "O_1: No landmarks nearby" in out
    assert "A_1 was turn_direction(" in out
    assert "arrived" not in out
    with Image.open(path) as image:
        assert image.size[0] == 1520
        colours = {colour for _, colour in image.getcolors(2**24) or []}
    assert {BAD, GOOD, NOT_YET} <= colours


@pytest.mark.parametrize("language", ["absolute", "relative"])
def test_the_expert_walks_and_arrives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: str
) -> None:
    path = tmp_path / "walk.png"
    words = ["--language", language, "--expert", "--map", str(path), "--set", "cities"]
    assert main(["play", "navigation", *words]) == 0
    assert told(capsys)[0].splitlines()[-2] == "arrived"
    with Image.open(path) as image:
        colours = {colour for _, colour in image.getcolors(2**24) or []}
    assert GOOD in colours
    assert not {BAD, LATE} & colours


def test_points_are_coloured_by_how_they_went() -> None:
    assert Tried(("forward()",), right=True).colour == GOOD
    assert Tried(("stop()", "forward()"), right=True).colour == LATE
    assert Tried(("stop()",), right=False).colour == BAD
    assert Tried((), right=False).colour == NOT_YET


def test_cards_by_hand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "1+1", "(1-7)*(1-5) = 24")
    assert main(["play", "points"]) == 0
    out, _ = told(capsys)
    assert "You failed this trial" in out
    assert out.splitlines()[-1] == "solved"
    type_in(monkeypatch)
    assert main(["play", "points"]) == 0
    assert main(["play", "points", "--expert", "--set", "rule-ood", "--index", "5"]) == 0
    assert told(capsys)[0].splitlines()[-1] == "solved"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["navigation", "--set", "nowhere"], "navigation-text-absolute-nowhere-v1 is not registered"),
        (["navigation", "--index", "18"], "from 0 to 17"),
        (["navigation", "--tries", "0"], "verify_iter=0"),
        (["navigation", "--data", "/nowhere"], "holds no vln-mini.jsonl"),
        (["points", "--set", "nothing"], "is not registered"),
        (["chess"], "chess"),
    ],
)
def test_bad_words_are_named(capsys: pytest.CaptureFixture[str], words: list[str], fault: str) -> None:
    assert main(["play", *words]) == 2
    assert fault in told(capsys)[1]
