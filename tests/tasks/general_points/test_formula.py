from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftrl_fast.tasks.general_points.formula import random_formula, reorder
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
