"""The published code's check of an answer and its solver in plain Python, the other side of ``bench_verify``.

Written anew from a description of what the code of Chu et al. (arXiv 2501.17161) does; the tests compare the
compiled ``reference`` rewards with it on random answers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import permutations, product
from typing import Any

RANK_NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
SHAPES = (
    "{}{}{}{}{}{}{}",
    "({}{}{}){}{}{}{}",
    "({}{}{}{}{}){}{}",
    "{}{}({}{}{}){}{}",
    "{}{}({}{}{}{}{})",
    "{}{}{}{}({}{}{})",
    "({}{}{}){}({}{}{})",
)
PATTERNS = {
    "formula": r'"formula": "(.*?)"',
    "cards": r'"cards": \[([^\]]+)\]',
    "number": r'"number": \[([^\]]+)\]',
}
ALLOWED_BEFORE = {
    "number": ("start", "operator", "("),
    "operator": ("number", ")"),
    "(": ("start", "operator", "("),
    ")": ("number", ")"),
}
OFFENCES = {
    "number": "invalid sequence after number",
    "operator": "invalid sequence after operator",
    "(": "invalid sequence before '('",
    ")": "invalid sequence after ')'",
}
ILLEGAL = "illegal characters"
EVALUATION_ERRORS = (SyntaxError, ZeroDivisionError, MemoryError, RecursionError, ValueError)


@cache
def stored_solutions(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    """Brute force over orders, operators and seven shapes; ``numbers`` sorted."""
    found = set()
    for order in set(permutations(numbers)):
        for operators in product("+-*/", repeat=3):
            a, b, c, d = order
            o, p, q = operators
            for shape in SHAPES:
                text = shape.format(a, o, b, p, c, q, d)
                exact = re.sub(r"\d+", r"Fraction(\g<0>)", text) if "/" in operators else text
                try:
                    value = eval(exact, {"Fraction": Fraction})
                except ZeroDivisionError:
                    continue
                if value == target:
                    found.add(text)
    return tuple(sorted(found))


def read_key(text: str, key: str) -> Any:
    try:
        return json.loads(text)[key]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass
    match = re.search(PATTERNS[key], text)
    if match is None:
        return "None"
    if key != "cards":
        return match[1]
    try:
        return [int(part) for part in match[1].split(", ")]
    except ValueError:
        return f"[{match[1]}]"


def as_list(value: Any) -> list[str]:
    if not isinstance(value, str):
        return []
    for character in "[]' ":
        value = value.replace(character, "")
    parts = value.split(",")
    return parts if len(parts) == 4 else []


def walk(tokens: list[str]) -> list[str]:
    offences = []
    before, open_parentheses = "start", 0
    for token in tokens:
        kind = token if token in "()" else "operator" if token in "+-*/" else "number"
        if before not in ALLOWED_BEFORE[kind]:
            offences.append(OFFENCES[kind])
        elif kind == "(":
            open_parentheses += 1
        elif kind == ")" and not open_parentheses:
            offences.append("unmatched closing parenthesis")
        elif kind == ")":
            open_parentheses -= 1
        before = kind
    return offences


def check_numbers(tokens: list[str], numbers: list[int]) -> list[str]:
    used = Counter(int(token) for token in tokens if token not in "+-*/()")
    held = Counter(numbers)
    offences = []
    if invalid := [number for number in used if number not in held]:
        offences.append(f"you used invalid numbers: {invalid}")
    elif too_often := [number for number in used if used[number] > held[number]]:
        offences.append(f"you used numbers: {too_often} too many times")
    if too_seldom := [number for number in held if used[number] < held[number]]:
        offences.append(f"you didn't use numbers: {too_seldom}")
    return offences


def check_value(
    formula: str, tokens: list[str], target: int, solutions: tuple[str, ...]
) -> tuple[float, str]:
    try:
        if eval(formula) == target:
            return 5, "Correct solution."
    except EVALUATION_ERRORS:
        if any(solution.startswith(formula) for solution in solutions):
            return 1, "partial solution."
    prefix = ""
    for token in tokens:
        if not any(solution.startswith(prefix + token) for solution in solutions):
            if not prefix:
                return -1, "your formula does not match any solution."
            return -1, f"{prefix} is partially correct but the full formula does not match any solution."
        prefix += token
    return 0, "."


def verify(
    text: str,
    ranks: list[int],
    numbers: list[int],
    target: int,
    cards_shown: bool,
    solutions: tuple[str, ...],
) -> tuple[float, str]:
    """Reward and message; ``solutions`` as :func:`stored_solutions` makes them, once a hand."""
    formula, cards = read_key(text, "formula"), as_list(read_key(text, "cards"))
    as_list(read_key(text, "number"))
    if isinstance(formula, str):
        formula = formula.split("=")[0]
    if cards_shown and sorted(cards) != sorted(RANK_NAMES[rank - 1] for rank in ranks):
        return -1.5, "you recognized wrong cards"
    if not isinstance(formula, str):
        return -3, f"{ILLEGAL}."
    tokens = re.findall(r"\d+|[-+*/()]", formula)
    if "".join(tokens) != formula:
        return -3, f"{ILLEGAL}."
    order, counts = walk(tokens), check_numbers(tokens, numbers)
    if order or counts:
        return -3.0 * len(order) - 2.0 * len(counts), ", ".join([*order, *counts]) + "."
    return check_value(formula, tokens, target, solutions)
