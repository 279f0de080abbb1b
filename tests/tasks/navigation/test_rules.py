"""Headings, their words and distances."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.tasks.navigation.geo import bearing, metres, moved
from sftrl_fast.tasks.navigation.rules import COMPASS, LANGUAGES, compass, relative, wrapped

degrees = st.integers(0, 359)


@pytest.mark.parametrize(
    ("heading", "word"),
    [
        (0, "north"),
        (22, "north"),
        (23, "northeast"),
        (90, "east"),
        (177, "south"),
        (337, "northwest"),
        (338, "north"),
    ],
)
def test_compass_words(heading: int, word: str) -> None:
    assert compass(heading) == word


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (0, 0, "slightly left"),
        (90, 91, "slightly right"),
        (90, 135, "slightly right"),
        (90, 136, "right"),
        (90, 45, "slightly left"),
        (90, 44, "left"),
        (10, 350, "slightly left"),
        (350, 10, "slightly right"),
        (300, 10, "right"),
        (0, 180, "left"),
    ],
)
def test_relative_words(before: int, after: int, word: str) -> None:
    assert relative(before, after) == word


def test_the_published_code_does_not_wrap() -> None:
    assert relative(350, 10, wrap=False) == "left"
    assert relative(10, 350, wrap=False) == "right"


@given(degrees, degrees, degrees)
@settings(deadline=None, max_examples=100)
def test_a_turn_does_not_depend_on_where_north_is(before: int, after: int, turned: int) -> None:
    assert relative(before, after) == relative((before + turned) % 360, (after + turned) % 360)
    assert -180 <= wrapped(after - before) < 180


@given(st.floats(-70, 70), st.floats(-179, 179), st.floats(-500, 500), st.floats(-500, 500))
@settings(deadline=None, max_examples=100)
def test_places_moved_by_metres_lie_so_far_in_that_direction(
    lat: float, lon: float, east: float, north: float
) -> None:
    place = moved((lat, lon), east, north)
    way = math.hypot(east, north)
    assert metres((lat, lon), place) == pytest.approx(way, rel=1e-3, abs=0.05)
    if way > 20:
        heading = math.degrees(math.atan2(east, north))
        assert abs(wrapped(bearing((lat, lon), place) - heading)) < 0.5


def test_a_degree_of_latitude_is_111_kilometres() -> None:
    assert metres((40.0, -74.0), (41.0, -74.0)) == pytest.approx(111_195, abs=10)
    assert metres((0.0, 179.5), (0.0, -179.5)) == pytest.approx(111_195, abs=10)


def test_languages_share_nothing_but_forward_and_stop() -> None:
    absolute, relative_ = LANGUAGES["absolute"].actions, LANGUAGES["relative"].actions
    assert absolute & relative_ == {"forward()", "stop()"}
    assert {f"turn_direction({word})" for word in COMPASS} < absolute
