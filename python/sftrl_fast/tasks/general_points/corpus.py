"""Dialogues for pre-training the ``tiny`` model: what web text is to a large one.

A problem is made backwards: four random ranks, a random rule, a random formula over the numbers, and its value
as the target, kept if it is a whole number from 1 to 99. So the model sees both rules, many targets and no
search. A share of the dialogues begins with wrong attempts and the verifier's words; those attempts are shown
and not trained.

What is left out, so that no evaluation set is ever seen at its target: with target 24, every hand that stands
in the validation or test part, and every hand with a face card under a rule other than ``face10``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sftrl_fast.core import Dialogue, Message
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.deal import part_of
from sftrl_fast.tasks.general_points.formula import random_formula
from sftrl_fast.tasks.general_points.rules import FIRST_FACE, RULES, Rule
from sftrl_fast.tasks.general_points.verifier import verify

# A number of one or two digits, an operator or parenthesis not set off by blanks, a card name in quotes.
PIECES = r'\d{1,2}|(?<! )[-+*/()=](?! )|(?<=")[AJQK](?=")'

MAX_TARGET = 99
HELD_OUT_TARGET = 24
REVISED_SHARE = 0.3
MAX_WRONG_ATTEMPTS = 3
# Of the wrong attempts, how many also use a number that is not on the cards.
STRAY_NUMBER_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class _Problem:
    ranks: list[int]
    rule: Rule
    target: int
    formula: str
    wrong: list[str]


def _is_held_out(ranks: list[int], rule: Rule, target: int) -> bool:
    if target != HELD_OUT_TARGET:
        return False
    if rule.name != "face10" and max(ranks) >= FIRST_FACE:
        return True
    return part_of(rule.numbers(ranks)) != "train"


def _random_problem(rng: np.random.Generator) -> _Problem:
    rules = list(RULES.values())
    while True:
        ranks = rng.integers(1, 14, size=4).tolist()
        rule = rules[int(rng.integers(len(rules)))]
        drawn = random_formula(rule.numbers(ranks), rng)
        if drawn is None or drawn.value.denominator != 1 or not 1 <= drawn.value <= MAX_TARGET:
            continue
        target = int(drawn.value)
        if not _is_held_out(ranks, rule, target):
            return _Problem(ranks, rule, target, drawn.text, _wrong_attempts(ranks, rule, target, rng))


def _wrong_attempts(ranks: list[int], rule: Rule, target: int, rng: np.random.Generator) -> list[str]:
    wrong: list[str] = []
    if rng.random() >= REVISED_SHARE:
        return wrong
    attempts = int(rng.integers(1, MAX_WRONG_ATTEMPTS + 1))
    while len(wrong) < attempts:
        numbers = rule.numbers(ranks)
        if rng.random() < STRAY_NUMBER_SHARE:
            numbers[int(rng.integers(4))] = int(rng.integers(1, 14))
        drawn = random_formula(numbers, rng)
        if drawn is not None and drawn.value != target:
            wrong.append(drawn.text)
    return wrong


def dialogues(rng: np.random.Generator, block: int = 1024) -> Iterator[Dialogue]:
    """An endless stream of dialogues; ``block`` problems are judged in one call."""
    while True:
        problems = [_random_problem(rng) for _ in range(block)]
        asked = [(p, prompt.answer(p.ranks, p.rule, w, p.target)) for p in problems for w in p.wrong]
        verdicts = verify(
            [text for _, text in asked],
            np.array([p.ranks for p, _ in asked]).reshape(-1, 4),
            rule=[p.rule.name for p, _ in asked],
            target=[p.target for p, _ in asked],
        )
        judged = iter(zip(asked, verdicts.messages(), strict=True))
        for problem in problems:
            dialogue = [Message("user", prompt.question(problem.ranks, problem.rule, problem.target))]
            for _ in problem.wrong:
                (_, text), message = next(judged)
                dialogue.append(Message("assistant", text, trained=False))
                dialogue.append(Message("user", prompt.revision(message)))
            text = prompt.answer(problem.ranks, problem.rule, problem.formula, problem.target)
            dialogue.append(Message("assistant", text))
            yield dialogue
