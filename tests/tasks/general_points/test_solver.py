from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast import Outcome, hands, solve, verify
from sftrl_fast.core import UserError

Form = tuple[Any, ...] | int


def evaluate(formula: str) -> Fraction:
    return eval(re.sub(r"\d+", r"Fraction(\g<0>)", formula), {"Fraction": Fraction})


@pytest.mark.parametrize(
    ("rule", "options", "count"),
    [
        ("face10", {"solvable": None}, 1820),
        ("face11-13", {"solvable": None}, 1820),
        ("face11-13", {}, 1362),
        ("face11-13", {"with_face": True}, 796),
        ("face10", {}, 1236),
        ("face10", {"with_face": True}, 670),
        ("face10", {"with_face": False}, 566),
        ("face11-13", {"with_face": False}, 566),
        ("face10", {"solvable": False}, 1820 - 1236),
    ],
)
def test_the_known_counts_of_hands(rule: str, options: dict[str, Any], count: int) -> None:
    table = hands(rule, **options)
    assert table.shape == (count, 4)
    assert len({tuple(row) for row in table.tolist()}) == count
    assert table.tolist() == sorted(sorted(row) for row in table.tolist())


def test_hands_follow_the_target() -> None:
    for row in hands("face11-13", 1)[::97].tolist():
        assert solve(row, 1)
    for row in hands("face11-13", 999, solvable=False)[::97].tolist():
        assert solve(row, 999) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 60))
def test_every_solution_uses_each_number_once_and_reaches_the_target(numbers: list[int], target: int) -> None:
    solutions = solve(numbers, target)
    assert len(set(solutions)) == len(solutions)
    for formula in solutions[:200]:
        assert evaluate(formula) == target
        assert sorted(map(int, re.findall(r"\d+", formula))) == sorted(numbers)


@settings(deadline=None)
@given(st.permutations([1, 5, 5, 12]))
def test_the_order_of_the_numbers_does_not_matter(numbers: list[int]) -> None:
    assert solve(numbers) == solve([1, 5, 5, 12])
    assert solve(numbers) == sorted(solve(numbers), key=lambda formula: (len(formula), formula))


def classes(numbers: list[int]) -> dict[Form, Fraction]:
    """Brute force: all trees over the numbers, sums and products flattened to multisets, and their values."""
    if len(numbers) == 1:
        return {numbers[0]: Fraction(numbers[0])}
    out: dict[Form, Fraction] = {}
    for order in set(permutations(numbers)):
        for cut in range(1, len(numbers)):
            for (a, x), (b, y) in (
                (left, right)
                for left in cached_classes(order[:cut]).items()
                for right in cached_classes(order[cut:]).items()
            ):
                out[flatten("sum", a, b, 1)] = x + y
                out[flatten("sum", a, b, -1)] = x - y
                out[flatten("product", a, b, 1)] = x * y
                if y:
                    out[flatten("product", a, b, -1)] = x / y
    return out


CACHE: dict[tuple[int, ...], dict[Form, Fraction]] = {}


def cached_classes(numbers: tuple[int, ...]) -> dict[Form, Fraction]:
    key = tuple(sorted(numbers))
    if key not in CACHE:
        CACHE[key] = classes(list(key))
    return CACHE[key]


def flatten(kind: str, left: Form, right: Form, sign: int) -> Form:
    parts: Counter[tuple[int, Form]] = Counter()
    for form, outer in ((left, 1), (right, sign)):
        inner = form[1] if isinstance(form, tuple) and form[0] == kind else (((1, form), 1),)
        for (own, part), times in inner:
            parts[own * outer, part] += times
    return kind, tuple(sorted(parts.items(), key=repr))


@pytest.mark.parametrize(
    "numbers", [[3, 3, 8, 8], [1, 2, 3, 4], [1, 1, 4, 6], [5, 5, 5, 1], [2, 7, 11], [6, 6]]
)
def test_one_formula_a_class(numbers: list[int]) -> None:
    values = Counter(cached_classes(tuple(numbers)).values())
    for target in range(40):
        assert len(solve(numbers, target)) == values[Fraction(target)], target


def test_numbers_far_apart_have_1260_classes() -> None:
    # As many as the solver's own table holds for four numbers; none of them divides by zero here.
    assert len(cached_classes((2, 31, 571, 9973))) == 1260
    integers = [
        int(v) for v in cached_classes((2, 31, 571, 9973)).values() if v.denominator == 1 and 0 <= v <= 10**6
    ]
    rng = random.Random(3)
    for value in rng.sample(integers, 20):
        assert len(solve([2, 31, 571, 9973], value)) == integers.count(value)


def test_six_numbers() -> None:
    solutions = solve([1, 2, 3, 4, 5, 6], 720)
    assert "6*5*4*3*2*1" in solutions
    assert "6*5*4*3*2/1" in solutions
    assert all(evaluate(formula) == 720 for formula in solutions)


def minimal(formula: str) -> bool:
    """No pair of parentheses can go without a change of value or grammar."""
    value = evaluate(formula)
    opened = []
    for i, character in enumerate(formula):
        if character == "(":
            opened.append(i)
        elif character == ")":
            start = opened.pop()
            if evaluate(formula[:start] + formula[start + 1 : i] + formula[i + 1 :]) == value:
                return False
    return True


def test_solutions_are_short_and_legal() -> None:
    # Numbers whose formulas do not keep their value by chance when parentheses go.
    for numbers in ([3, 3, 8, 8], [4, 7, 9, 11], [5, 7, 9, 13]):
        solutions = solve(numbers)
        assert all(map(minimal, solutions))
        texts = [f'"formula": "{formula}"' for formula in solutions]
        assert (verify(texts, [numbers] * len(texts), rule="face11-13").outcome == Outcome.RIGHT).all()


def test_formulas_beyond_64_bits_are_left_out_and_nothing_breaks() -> None:
    numbers = [1_000_000, 999_999, 999_983, 999_979]
    assert all(evaluate(formula) == 0 for formula in solve(numbers, 0))
    assert solve([10**6] * 6, 10**6)


@pytest.mark.parametrize(
    ("numbers", "target", "words"),
    [
        ([], 24, "0 entries"),
        ([1] * 7, 24, "7 entries"),
        ([1, -2], 24, "numbers=-2"),
        ([1.5], 24, "numbers=[1.5]"),
        ([1], 10**9, "target=1000000000"),
        ([1], 2.5, "target=2.5"),
    ],
)
def test_bad_arguments_of_the_solver(numbers: list[int], target: int, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        solve(numbers, target)


def test_an_unknown_rule_names_the_choices() -> None:
    with pytest.raises(UserError, match="face11-13"):
        hands("jokers")
