from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftrl_fast.tasks.general_points.formula import random_formula, reorder, worked
from sftrl_fast.tasks.general_points.verifier import Outcome, solve, verify

HANDS = st.lists(st.integers(1, 10), min_size=4, max_size=4)


def _outcomes(formulas: list[str], numbers: list[int], target: list[int] | int) -> list[int]:
    responses = [f'{{"formula": "{formula}"}}' for formula in formulas]
    return verify(responses, np.array([numbers] * len(formulas)), target=target).outcome.tolist()


@given(numbers=HANDS, seed=st.integers(0, 2**32))
def test_a_random_formula_is_legal_and_has_its_value(numbers: list[int], seed: int) -> None:
    formula = random_formula(numbers, np.random.default_rng(seed))
    if formula is None or formula.value.denominator != 1 or not 1 <= formula.value <= 10_000:
        return
    assert _outcomes([formula.text], numbers, int(formula.value)) == [Outcome.RIGHT]


@given(numbers=HANDS, seed=st.integers(0, 2**32))
def test_reordering_a_solution_leaves_a_solution(numbers: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    formulas = [reorder(solution, rng) for solution in solve(numbers)]
    assert all(outcome == Outcome.RIGHT for outcome in _outcomes(formulas, numbers, 24))


def test_reordering_reaches_every_order() -> None:
    rng = np.random.default_rng(0)
    assert {reorder("2+3*4", rng) for _ in range(100)} == {"2+3*4", "2+4*3", "3*4+2", "4*3+2"}
    assert {reorder("(9-1)*3", rng) for _ in range(100)} == {"(9-1)*3", "3*(9-1)"}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("8/(3-8/3)", ["8/3=8/3", "3-(8/3)=1/3", "8/(1/3)=24"]),
        ("2-(4-5)*22", ["4-5=-1", "(-1)*22=-22", "2-(-22)=24"]),
        ("24", []),
    ],
)
def test_a_formula_is_worked_out_innermost_first(text: str, steps: list[str]) -> None:
    assert worked(text) == steps


def test_every_step_holds_and_the_last_one_is_the_value() -> None:
    for text in solve([3, 5, 7, 11]) + solve([1, 5, 5, 5]):
        steps = [step.split("=") for step in worked(text)]
        for left, right in steps:
            assert eval(re.sub(r"(\d+)", r"Fraction(\1)", left)) == Fraction(right)
        assert steps[-1][1] == "24"
