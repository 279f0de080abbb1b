"""A route by hand: its instructions, what is seen, and the expert's actions in both languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation.dataset import Route, Spot, in_between, read_routes, write_routes
from sftrl_fast.tasks.navigation.rail import build_rail
from sftrl_fast.tasks.navigation.sets import made_routes
from sftrl_fast.tasks.seeding import generator

ROUTE = Route(
    "by-hand",
    "Nowhere",
    "Old Oak Hotel",
    (
        Spot((40.0, -70.0), 350, key=True),
        Spot((40.0003, -70.0), 10, key=False),
        Spot((40.001, -70.0), 10, key=True, landmark="Blue Fox Cafe is on your left"),
        Spot((40.001, -69.999), 90, key=True, landmark="No landmark nearby"),
        Spot((40.0015, -69.998), 177, key=True, landmark="Old Oak Hotel is on your right"),
    ),
)


def test_instructions_alternate_turn_and_way() -> None:
    assert build_rail(ROUTE, "absolute").instructions == (
        "First, turn slightly right to face north.",
        "Move forward until you reach next intersection where Blue Fox Cafe is on your left.",
        "Turn right to face east.",
        "Move forward until you reach next intersection.",
        "Turn right to face south.",
        "Move forward until you reach destination where Old Oak Hotel is on your right.",
    )


def test_without_wrapping_the_first_turn_is_left() -> None:
    rail = build_rail(ROUTE, "relative", wrap=False)
    assert rail.instructions[0] == "First, turn left to face north."
    assert rail.steps[0].action == "turn_direction(left)"


def test_what_is_seen_and_done_at_each_point() -> None:
    steps = build_rail(ROUTE, "absolute").steps
    assert [(step.observation, step.number, step.action) for step in steps] == [
        ("No landmarks nearby", 1, "turn_direction(north)"),
        ("No landmarks nearby", 2, "forward()"),
        ("Blue Fox Cafe is on your left; You observe an intersection", 3, "turn_direction(east)"),
        ("No landmark nearby; You observe an intersection", 5, "turn_direction(south)"),
        ("Old Oak Hotel is on your right", 6, "stop()"),
    ]
    assert [step.intersection for step in steps] == [False, False, True, True, False]
    assert steps[2].landmark == "Blue Fox Cafe is on your left"


def test_the_shifted_language_changes_the_turns_alone() -> None:
    absolute, relative = build_rail(ROUTE, "absolute"), build_rail(ROUTE, "relative")
    assert absolute.instructions == relative.instructions
    assert [step.action for step in relative.steps] == [
        "turn_direction(slightly right)", "forward()", "turn_direction(right)", "turn_direction(right)", "stop()",
    ]  # fmt: skip


def test_points_in_between_are_evenly_spaced_and_half_are_dropped() -> None:
    drawn = [in_between((40.0, -70.0), (40.006, -70.0), generator("test", "", i)) for i in range(400)]
    shares = {round((place[0] - 40.0) / 0.001) for places in drawn for place in places}
    assert shares == {1, 2, 3, 4, 5}
    assert 900 < sum(map(len, drawn)) < 1100
    assert in_between((40.0, -70.0), (40.00003, -70.0), generator("test", "", 0)) == []


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    routes = (ROUTE, *made_routes("vln-mini"))
    write_routes(tmp_path / "some.jsonl", routes)
    assert read_routes(tmp_path / "some.jsonl") == routes


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"version": 1', '"version": 2', "line 1 .*version 1"),
        ('"routes": 1', '"routes": 2', "cut short"),
        ("40.0003", "91.5", "line 2 .*latitude"),
        ("40.0003", "NaN", "line 2 .*latitude"),
        ("40.0003", '"40"', "line 2 .*numbers"),
        ('"heading":350', '"heading":360', "line 2 .*heading 360"),
        ('"heading":350', '"heading":3.5', "line 2 .*heading 3.5"),
        ('"city":"Nowhere",', "", "line 2 lacks 'city'"),
        ('"spots":[', '"spots":[],"more":[', "line 2 .*0 spots"),
        ('"spots":[', '"spots":[1,', "line 2"),
        ('{"name"', '[{"name"', "line 2"),
        ('"Old Oak Hotel"', "7", "line 2 .*no text"),
    ],
)
def test_a_spoilt_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "some.jsonl"
    write_routes(path, [ROUTE])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=told):
        read_routes(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match="line 1"):
        read_routes(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    with path.open("wb") as file:
        file.truncate(500 * 2**20)
    with pytest.raises(UserError, match="524,288,000 bytes"):
        read_routes(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_routes(tmp_path / "none.jsonl")
