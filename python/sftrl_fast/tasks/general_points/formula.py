"""Formulas as they are written: with the parentheses that precedence needs, operands in random order."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

OPERATORS = "+-*/"
_SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True, slots=True)
class Formula:
    """``operator`` is the outermost one, empty for a bare number."""

    value: Fraction
    text: str
    operator: str = ""


def number(value: int) -> Formula:
    return Formula(Fraction(value), str(value))


def join(left: Formula, operator: str, right: Formula) -> Formula:
    """``left operator right``. ``ZeroDivisionError`` as the arithmetic has it."""
    weak = ("+", "-")
    left_text, right_text = left.text, right.text
    if operator in "*/" and left.operator in weak:
        left_text = f"({left_text})"
    if (operator in "*-" and right.operator in weak) or (operator == "/" and right.operator):
        right_text = f"({right_text})"
    match operator:
        case "+":
            value = left.value + right.value
        case "-":
            value = left.value - right.value
        case "*":
            value = left.value * right.value
        case _:
            value = left.value / right.value
    return Formula(value, f"{left_text}{operator}{right_text}", operator)


def random_formula(numbers: list[int], rng: np.random.Generator) -> Formula | None:
    """A formula that uses each of ``numbers`` once; None on division by zero.

    Any two terms are joined by any operation until one is left.
    """
    terms = [number(n) for n in numbers]
    while len(terms) > 1:
        left = terms.pop(int(rng.integers(len(terms))))
        right = terms.pop(int(rng.integers(len(terms))))
        operator = OPERATORS[int(rng.integers(4))]
        if operator == "/" and right.value == 0:
            return None
        terms.append(join(left, operator, right))
    return terms[0]


def worked(text: str) -> list[str]:
    """The operations of a formula of ours one by one, innermost first: ``8/(3-8/3)`` is ``8/3=8/3``, ``3-(8/3)=1/3``,
    ``8/(1/3)=24``. Fractions and negative values stand in parentheses. ``ZeroDivisionError`` as the arithmetic has it.
    """
    steps: list[str] = []
    _value(ast.parse(text, mode="eval").body, steps)
    return steps


def _value(node: ast.expr, steps: list[str]) -> Fraction:
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.BinOp(left, operation, right):
            sides = [_value(left, steps), _value(right, steps)]
            first, second = (Formula(side, _operand(side)) for side in sides)
            step = join(first, _SYMBOLS[type(operation)], second)
            steps.append(f"{step.text}={step.value}")
            return step.value
    raise ValueError(f"not a formula over whole numbers: {ast.unparse(node)}")


def _operand(value: Fraction) -> str:
    return str(value) if value >= 0 and value.denominator == 1 else f"({value})"


def reorder(text: str, rng: np.random.Generator) -> str:
    """A formula of ours written anew: the two sides of each + and * change places by the toss of a coin."""
    return _reordered(ast.parse(text, mode="eval").body, rng).text


def _reordered(node: ast.expr, rng: np.random.Generator) -> Formula:
    match node:
        case ast.Constant(value=int() as value):
            return number(value)
        case ast.BinOp(left, operation, right):
            sides = [_reordered(left, rng), _reordered(right, rng)]
            operator = _SYMBOLS[type(operation)]
            if operator in "+*" and rng.random() < 0.5:
                sides.reverse()
            return join(sides[0], operator, sides[1])
    raise ValueError(f"not a formula over whole numbers: {ast.unparse(node)}")
