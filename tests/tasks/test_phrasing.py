"""One item in several wordings, and answers that say how they were found: right as before, in every form."""

from __future__ import annotations

import json
from string import Formatter
from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points import prompt as cards
from sftrl_fast.tasks.navigation import prompt as routes
from sftrl_fast.tasks.phrasing import wording

IDS = ["sftrl/points-text-validation-v1", "sftrl/navigation-text-relative-validation-v1"]
WORDINGS = {IDS[0]: cards.WORDINGS, IDS[1]: routes.WORDINGS}
ITEMS = 40


def questions(env_id: str, **keywords: Any) -> list[str]:
    env: Any = gymnasium.make(env_id, **keywords)
    return [str(env.reset(options={"index": index})[0]) for index in range(ITEMS)]


def frame(question: str, wordings: tuple[str, ...]) -> int:
    """Which of ``wordings`` a question is in, by the longest text between two gaps."""
    parts = [max((literal for literal, *_ in Formatter().parse(text)), key=len) for text in wordings]
    (found,) = (place for place, part in enumerate(parts) if part in question)
    return found


@pytest.mark.parametrize("env_id", IDS)
def test_varied_wordings_are_all_used_and_never_the_one_that_is_held_out(env_id: str) -> None:
    wordings = WORDINGS[env_id]
    varied = [frame(question, wordings) for question in questions(env_id, phrasing="varied")]
    assert set(varied) == set(range(len(wordings) - 1))
    assert {frame(question, wordings) for question in questions(env_id)} == {0}
    held_out = questions(env_id, phrasing="held-out")
    assert {frame(question, wordings) for question in held_out} == {len(wordings) - 1}


@pytest.mark.parametrize("env_id", IDS)
def test_an_item_has_one_wording_alone_and_in_company(env_id: str) -> None:
    one = questions(env_id, phrasing="varied")
    assert one == questions(env_id, phrasing="varied")
    envs: Any = gymnasium.make_vec(env_id, num_envs=ITEMS, phrasing="varied")
    assert list(envs.reset(options={"index": np.arange(ITEMS)})[0]) == one


def test_every_wording_says_all_that_is_needed() -> None:
    for text in cards.WORDINGS:
        for need in (
            "{target}",
            "{sentence}",
            "{cards}",
            "{output}",
            "A counts as 1",
            "+ - * /",
            "parentheses",
        ):
            assert need in text
    for text in routes.WORDINGS:
        for need in (
            "{instructions}",
            "{words}",
            "{output}",
            "{views}",
            "{observation}",
            "forward()",
            "stop()",
        ):
            assert need in text


def test_the_last_wording_is_the_one_held_out() -> None:
    assert {wording("varied", ("a", "b", "c"), index) for index in range(50)} == {"a", "b"}
    assert wording("held-out", ("a", "b", "c"), 7) == "c"
    assert wording("plain", ("a", "b", "c"), 7) == "a"


@pytest.mark.parametrize("rewards", ["exact", "reference"])
@pytest.mark.parametrize("env_id", IDS)
def test_reasons_stand_before_the_answer_and_change_no_verdict(env_id: str, rewards: str) -> None:
    plain, reasoned = (
        gymnasium.make(env_id, rewards=rewards, reasoning=on).unwrapped for on in (False, True)
    )
    for index in range(ITEMS):
        for env in (plain, reasoned):
            env.reset(options={"index": index})
        pair = [env.demonstration(index) for env in (plain, reasoned)]  # type: ignore[attr-defined]
        short, long = ([answers] if isinstance(answers, str) else list(answers) for answers in pair)
        for one, other in zip(short, long, strict=True):
            facts, more = json.loads(one), json.loads(other)
            *_, key, last = more
            assert key in ("steps", "reasoning")
            assert last in ("formula", "action")
            assert {name: more[name] for name in facts} == facts
            assert plain.step(one)[1:4] == reasoned.step(other)[1:4]


@pytest.mark.parametrize(("env_id", "field"), [(IDS[0], '"steps": "..."'), (IDS[1], '"reasoning": "..."')])
def test_reasons_are_asked_for_where_they_are_shown(env_id: str, field: str) -> None:
    assert all(field in question for question in questions(env_id, reasoning=True))
    assert not any(field in question for question in questions(env_id))


def test_a_wrong_answer_is_asked_again_in_the_same_shape() -> None:
    env = gymnasium.make(IDS[1], reasoning=True)
    env.reset(options={"index": 0})
    assert routes.WORKED_OUTPUT in env.step("no action")[0]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize(
    ("keywords", "words"), [({"phrasing": "free"}, "phrasing='free'"), ({"reasoning": 2}, "reasoning=2")]
)
def test_other_values_are_refused(env_id: str, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        gymnasium.make(env_id, **keywords)
