"""Verdicts on one answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.expert import right_answer
from sftrl_fast.tasks.navigation.rail import Step, build_rail
from sftrl_fast.tasks.navigation.rules import LANGUAGES
from sftrl_fast.tasks.navigation.sets import made_routes
from sftrl_fast.tasks.navigation.verifier import Outcome, verify

ABSOLUTE = LANGUAGES["absolute"]
STEPS = build_rail(made_routes("vln-mini")[0], "absolute").steps
CROSSING = next(step for step in STEPS if step.intersection)
STREET = next(step for step in STEPS if step.action == "forward()")
SEEN = "X; You observe an intersection"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rewards", ["exact", "reference"])
def test_the_expert_is_right(step: Step, rewards: str) -> None:
    verdict = verify(right_answer(step), step, ABSOLUTE, rewards)
    assert (verdict.reward, verdict.outcome, verdict.message) == (1.0, Outcome.RIGHT, "")


@pytest.mark.parametrize(
    ("step", "observed", "action", "outcome", "exact", "reference"),
    [
        (CROSSING, SEEN, "stop()", Outcome.WRONG_ACTION, -1, -1.5),
        (CROSSING, "X", "stop()", Outcome.MISSED_INTERSECTION, -1.5, -1),
        (STREET, "X", "stop()", Outcome.WRONG_ACTION, -1, -1),
        (STREET, SEEN, "stop()", Outcome.IMAGINED_INTERSECTION, -1.5, -1.5),
        (STREET, "X", "turn_direction(left)", Outcome.FOREIGN_ACTION, -1, -1),
        (STREET, "X", "forward", Outcome.FOREIGN_ACTION, -1, -1),
        (STREET, "X", "Forward()", Outcome.FOREIGN_ACTION, -1, -1),
        (STREET, SEEN, "forward()", Outcome.RIGHT, 1, 1),
    ],
)
def test_reward_rows(
    step: Step, observed: str, action: str, outcome: Outcome, exact: float, reference: float
) -> None:
    answer = prompt.answer(observed, "whatever", action)
    assert (verify(answer, step, ABSOLUTE).outcome, verify(answer, step, ABSOLUTE).reward) == (outcome, exact)
    assert verify(answer, step, ABSOLUTE, "reference").reward == reference


@pytest.mark.parametrize(
    "text",
    [
        '{"action": "forward()"}',
        "{'action': 'forward()'}",
        '{"action" :\n "forward()" ,}',
        '{"action": "stop()"} No: {"action": " forward() "',
        '"observation": "action", "action": "forward()"',
    ],
)
def test_the_last_action_counts_in_any_json_of_sorts(text: str) -> None:
    assert verify(text, STREET, ABSOLUTE).outcome is Outcome.RIGHT


@pytest.mark.parametrize(
    "text", ["", "forward()", '{"action": forward()}', '{"action": ""', '{"actions": "forward()"}']
)
def test_no_action_to_be_read(text: str) -> None:
    verdict = verify(text, STREET, ABSOLUTE)
    assert verdict.reward == -1
    assert verdict.outcome in (Outcome.MALFORMED, Outcome.FOREIGN_ACTION)
    assert verdict.message


@given(st.text(alphabet=st.characters(), max_size=200) | st.text("\"'action:{}\\ \n()", max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_text_gets_a_verdict(text: str) -> None:
    for rewards in ("exact", "reference"):
        assert verify(text, CROSSING, ABSOLUTE, rewards).reward in (1.0, -1.0, -1.5)


@pytest.mark.parametrize(
    "text",
    ['"action":"' * 50_000, "'action':'" * 50_000, '"action"' + " " * 500_000, '"action":"' + "\\" * 500_000,
     '"action": ' * 50_000, '"current observation":"' + 'a\\"' * 200_000],
)  # fmt: skip
def test_long_answers_take_linear_time(text: str) -> None:
    began = time.process_time()
    verify(text, CROSSING, ABSOLUTE)
    assert time.process_time() - began < 2
