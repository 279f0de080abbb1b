"""Cards as a picture: what is shown, how misread cards are judged, that rows agree with single environments."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks import TASKS
from sftrl_fast.tasks.general_points.env import DEFAULT_SIZE
from sftrl_fast.tasks.general_points.render import DECKS, deal_suits, draw_table
from sftrl_fast.tasks.general_points.rules import RANK_NAMES
from sftrl_fast.tasks.general_points.verifier import Outcome

TRAIN, ID = "sftrl/points-image-train-v1", "sftrl/points-image-id-v1"
VISUAL, RULE = "sftrl/points-image-visual-ood-v1", "sftrl/points-image-rule-ood-v1"
IMAGE_ROWS = [row for row in TASKS if row.look == "image"]
SMALL = {"size": 64}


def make(env_id: str = ID, **keywords: Any) -> Any:
    return gymnasium.make(env_id, **(SMALL | keywords))


def answer(env: Any, index: int, *, cards: list[str] | None = None, formula: str | None = None) -> str:
    """The demonstration of an item, with other cards or another formula."""
    text = env.demonstration(index)
    if cards is not None:
        text = re.sub(
            r'"cards": \[[^]]*\]', '"cards": [' + ", ".join(f'"{card}"' for card in cards) + "]", text
        )
    if formula is not None:
        text = re.sub(r'"formula": "[^"]*"', f'"formula": "{formula}"', text)
    return text


def misread(env: Any, index: int) -> list[str]:
    names = [RANK_NAMES[rank - 1] for rank in env.items[index].tolist()]
    return ["A" if names[0] != "A" else "2", *names[1:]]


def test_the_table_is_shown_and_the_cards_are_not_told() -> None:
    env = make()
    observation, info = env.reset(options={"index": 5})
    ranks = env.items[5].tolist()
    suits = deal_suits(ranks, DECKS["black"])
    assert np.array_equal(observation["image"], draw_table(ranks, suits, "black", 64))
    assert "in the picture" in observation["text"]
    assert not any(f'"{name}"' in observation["text"] for name in info["cards"])


def test_the_papers_size_is_the_default() -> None:
    observation, _ = gymnasium.make(ID).reset(options={"index": 0})
    assert observation["image"].shape == (DEFAULT_SIZE, DEFAULT_SIZE, 3)
    assert DEFAULT_SIZE == 1200


@pytest.mark.parametrize(
    ("cards_right", "formula", "outcome", "reward"),
    [
        (True, None, Outcome.RIGHT, 5.0),
        (False, None, Outcome.RIGHT, 3.5),
        (False, "1+1", Outcome.WRONG_NUMBERS, -3.5),
        (True, "1+1", Outcome.WRONG_NUMBERS, -2.0),
        (False, "(", Outcome.MALFORMED, -4.5),
        (True, "(", Outcome.MALFORMED, -3.0),
    ],
)
def test_misread_cards_cost_on_top_of_the_formula(
    cards_right: bool, formula: str | None, outcome: Outcome, reward: float
) -> None:
    env = make()
    env.reset(options={"index": 9})
    cards = None if cards_right else misread(env, 9)
    _, got, _, _, info = env.step(answer(env, 9, cards=cards, formula=formula))
    assert (info["outcome"], got) == (outcome, reward)
    assert info["recognised"] is cards_right
    assert info["success"] == (outcome is Outcome.RIGHT), (
        "success is of the formula, recognition a rate of its own"
    )


def test_the_reference_rewards_look_no_further_than_misread_cards() -> None:
    env = make(rewards="reference")
    env.reset(options={"index": 9})
    _, reward, _, _, info = env.step(answer(env, 9, cards=misread(env, 9)))
    assert (reward, info["success"], info["recognised"]) == (-1.5, False, False)


def test_a_wrong_answer_is_told_of_the_cards_and_the_table_stays() -> None:
    env = make()
    first, _ = env.reset(options={"index": 2})
    second, *_ = env.step(answer(env, 2, cards=misread(env, 2), formula="1+1"))
    assert "card" in second["text"]
    assert np.array_equal(first["image"], second["image"])
    assert env.observation_space.contains(second)


def test_the_visual_shift_changes_the_look_alone() -> None:
    plain, red = make(ID), make(VISUAL)
    assert np.array_equal(plain.items, red.items)
    one, other = (env.reset(options={"index": 0})[0] for env in (plain, red))
    assert one["text"] == other["text"]
    assert not np.array_equal(one["image"], other["image"])
    ruled = make(RULE)
    assert ruled.deck == plain.deck
    assert len(ruled.items) == 796


def test_image_rows_deal_the_hands_of_their_text_siblings() -> None:
    for name in ("train", "validation", "seen", "id", "rule-ood"):
        image, text = make(f"sftrl/points-image-{name}-v1"), gymnasium.make(f"sftrl/points-text-{name}-v1")
        assert np.array_equal(image.items, text.items)
    assert {row.deck for row in IMAGE_ROWS} == set(DECKS)
    assert make(TRAIN).deck == "black"


def test_rows_are_what_single_environments_are() -> None:
    indices = np.array([4, 0, 4])
    envs = gymnasium.make_vec(ID, num_envs=3, **SMALL)
    singles = [make() for _ in range(3)]
    shown, _ = envs.reset(options={"index": indices})
    alone = [env.reset(options={"index": int(i)})[0] for env, i in zip(singles, indices, strict=True)]
    for _ in range(2):
        for row, single in zip(shown, alone, strict=True):
            assert row["text"] == single["text"]
            assert np.array_equal(row["image"], single["image"])
        answers = [
            answer(singles[0], 4),
            answer(singles[1], 0, cards=misread(singles[1], 0), formula="1+1"),
            "",
        ]
        shown, rewards, *_, infos = envs.step(answers)
        stepped = [e.step(a) if e._live else None for e, a in zip(singles, answers, strict=True)]
        for row, result in enumerate(stepped):
            if result is not None:
                alone[row] = result[0]
                assert (rewards[row], infos["recognised"][row]) == (result[1], result[4]["recognised"])
    assert envs.observation_space.contains(shown)
    assert shown[0]["image"] is shown[2]["image"], "rows of one item share the picture"
    assert not shown[0]["image"].flags.writeable


def test_text_rows_need_no_image_library() -> None:
    env = gymnasium.make("sftrl/points-text-id-v1")
    observation, *_ = env.reset(options={"index": 0})
    assert isinstance(observation, str)
    assert "recognised" not in env.step("")[4]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"size": 7}, "size=7"), ({"size": "big"}, "size='big'"), ({"sise": 64}, "it takes .*, size")],
)
def test_bad_keywords_are_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gymnasium.make(ID, **keywords)
    with pytest.raises(UserError, match="size=64 is no keyword"):
        gymnasium.make("sftrl/points-text-id-v1", size=64)
