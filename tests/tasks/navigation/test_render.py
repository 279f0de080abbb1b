"""Drawn street views."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sftrl_fast.core import UserError
from sftrl_fast.tasks import NAVIGATION_TASKS
from sftrl_fast.tasks.navigation.city import CITIES
from sftrl_fast.tasks.navigation.dataset import Spot
from sftrl_fast.tasks.navigation.looks import LOOKS
from sftrl_fast.tasks.navigation.render import Pixels, street_view

IMAGE_IDS = [row.id for row in NAVIGATION_TASKS if row.look == "image"]
ID = "sftrl/navigation-image-relative-vln-mini-v1"
SIZE = 224
ARMS = (0, 90, 180, 270)


def quarters(picture: Pixels) -> dict[str, Pixels]:
    half = len(picture) // 2
    return {
        "front": picture[: half - 1, : half - 1],
        "right": picture[: half - 1, half + 1 :],
        "back": picture[half + 1 :, : half - 1],
        "left": picture[half + 1 :, half + 1 :],
    }


def spot(heading: int, sight: int | None, arms: tuple[int, ...] = ARMS) -> Spot:
    return Spot(
        (40.0, -70.0), heading, key=True, landmark="Blue Fox Cafe is on your left", arms=arms, sight=sight
    )


def sign_pixels(picture: Pixels, city: str) -> dict[str, int]:
    colour = LOOKS[CITIES[city].look].sign
    return {name: int((view == colour).all(axis=-1).sum()) for name, view in quarters(picture).items()}


@pytest.mark.parametrize("heading", [0, 10, 137, 359])
@pytest.mark.parametrize(
    ("off", "view"),
    [
        (0, "front"),
        (45, "front"),
        (-45, "front"),
        (90, "right"),
        (135, "right"),
        (-90, "left"),
        (-135, "left"),
        (180, "back"),
    ],
)
def test_the_landmark_stands_on_its_side(heading: int, off: int, view: str) -> None:
    picture = street_view(spot(heading, (heading + off) % 360), "Eastmoor", SIZE)
    found = sign_pixels(picture, "Eastmoor")
    assert [name for name, count in found.items() if count] == [view]
    if abs(off) == 45:
        columns = np.flatnonzero((quarters(picture)[view] == LOOKS["brick"].sign).all(axis=-1).any(axis=0))
        assert (columns.mean() > SIZE / 4) == (off > 0)


def test_there_is_no_sign_without_a_landmark() -> None:
    assert not any(sign_pixels(street_view(spot(0, None), "Eastmoor", SIZE), "Eastmoor").values())


def test_names_differ_on_the_sign() -> None:
    fox = street_view(spot(0, 40), "Eastmoor", SIZE)
    owl = street_view(
        Spot((40.0, -70.0), 0, key=True, landmark="Blue Owl Cafe is on your left", arms=ARMS, sight=40),
        "Eastmoor",
        SIZE,
    )
    different = (fox != owl).any(axis=-1)
    assert different.any()
    assert different.mean() < 0.02


def test_streets_lie_where_they_leave() -> None:
    """A tee: the road goes on to the left and right, and a wall stands ahead."""
    road = LOOKS["brick"].road
    views = quarters(street_view(spot(0, None, arms=(90, 180, 270)), "Eastmoor", SIZE))
    row = SIZE // 4 + 8
    middle = {
        name: (view[row, SIZE // 4 - 4 : SIZE // 4 + 4] == road).all(axis=-1).any()
        for name, view in views.items()
    }
    assert middle == {"front": False, "right": True, "back": True, "left": True}


def test_crossings_have_stripes_and_streets_have_none() -> None:
    paint = LOOKS["brick"].marking
    widths = {}
    for name, arms in (("crossing", ARMS), ("street", (0, 180))):
        front = quarters(street_view(spot(0, None, arms), "Eastmoor", SIZE))["front"]
        columns = np.flatnonzero((front == paint).all(axis=-1).any(axis=0))
        widths[name] = np.ptp(columns)
    assert widths["crossing"] > SIZE / 5
    assert 0 < widths["street"] < SIZE / 20


def test_published_views_are_turned_by_an_eighth() -> None:
    ours = street_view(spot(45, None), "Eastmoor", SIZE)
    theirs = street_view(spot(0, None), "Eastmoor", SIZE, "reference")
    half = SIZE // 2
    first, third = slice(2, half - 2), slice(half + 2, SIZE - 2)
    # Where the prompt says back they look half right, where it says front they look back to the left.
    np.testing.assert_array_equal(theirs[third, first], ours[first, first])
    np.testing.assert_array_equal(theirs[first, first], ours[third, first])


def test_cities_look_different_and_a_place_always_the_same() -> None:
    pictures = {city: street_view(spot(0, 45), city, SIZE) for city in CITIES}
    for first in CITIES:
        for second in CITIES:
            if first < second:
                assert (pictures[first] != pictures[second]).any(axis=-1).mean() > 0.5
    street_view.cache_clear()
    again = street_view(spot(0, 45), "Kesh", SIZE)
    np.testing.assert_array_equal(again, pictures["Kesh"])
    assert not again.flags.writeable
    assert street_view(spot(0, 45), "Somewhere else", SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("size", [64, 112, 448])
def test_long_names_fit_small_pictures(size: int) -> None:
    wide = Spot(
        (1.0, 1.0),
        0,
        key=True,
        landmark="Immeasurable Thistle Pharmacy is on your left",
        arms=ARMS,
        sight=315,
    )
    assert street_view(wide, "Kesh", size).shape == (size, size, 3)


@pytest.mark.parametrize("env_id", IMAGE_IDS[::3])
def test_check_env_finds_nothing_to_say(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id, size=64))
        envs = gymnasium.make_vec(env_id, num_envs=2, size=64)
    assert envs.observation_space.contains(envs.reset(seed=0)[0])


def test_pictures_take_the_place_of_landmarks_in_words() -> None:
    env = gymnasium.make(ID, size=64).unwrapped
    observation, _ = env.reset(options={"index": 0})
    assert "You observe an image of 4 views" in observation["text"]
    for place, answer in enumerate(env.demonstration(0)):
        step = env.rail(0).steps[place]
        np.testing.assert_array_equal(observation["image"], env.picture(0, step.spot))
        shown = observation["text"].partition("O_")[2]
        assert "on your" not in shown
        assert ("You observe an intersection" in shown) == step.intersection
        observation, reward, terminated, _, _ = env.step(answer)
        assert reward == 1.0
    assert terminated
    assert observation["text"] == ""


def test_rows_see_what_single_walks_see() -> None:
    envs = gymnasium.make_vec(ID, num_envs=2, size=64)
    env = gymnasium.make(ID, size=64).unwrapped
    observations, _ = envs.reset(options={"index": np.array([4, 5])})
    expected, _ = env.reset(options={"index": 5})
    np.testing.assert_array_equal(observations[1]["image"], expected["image"])
    observations = envs.step_rows(np.array([1]), [env.demonstration(5)[0]])[0]
    expected = env.step(env.demonstration(5)[0])[0]
    assert observations[0]["text"] == expected["text"]
    np.testing.assert_array_equal(observations[0]["image"], expected["image"])


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"size": 65}, "size=65 .*even"),
        ({"size": 1e9}, "size="),
        ({"size": 32}, "64 to"),
        ({"views": "x"}, "views='x'"),
    ],
)
def test_bad_keywords_of_pictures(keywords: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        gymnasium.make(ID, **keywords)
    with pytest.raises(UserError, match="is no keyword of this task"):
        gymnasium.make(ID.replace("image", "text"), **keywords)
