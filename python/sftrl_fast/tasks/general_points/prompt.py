"""The words of the card game: the question, the answer's shape, the turn after a wrong answer.

The content follows Chu et al., section A.1 (task, rule of the face cards, cards, output as JSON); the wording
is ours and short, so that the smallest model's rows stay under 60 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from sftrl_fast.tasks.general_points.rules import Rule, rank_names

QUESTION = """\
[Task] Four cards are dealt. Write a formula that uses each card's number exactly once, with + - * / and \
parentheses only, and equals {target}.
[Rule] A counts as 1. {sentence}.
[Cards] {cards}
[Output] JSON with the cards, their numbers under the rule, and the formula: {output}"""

WORDINGS = (
    QUESTION,
    """\
[Cards] {cards}
[Rule] {sentence}. A counts as 1.
[Task] Make {target} of the four cards' numbers: use each of them once, with + - * / and parentheses.
[Output] A JSON object of cards, numbers and formula: {output}""",
    """\
You are playing a card game. Your cards: {cards}. {sentence}, and A counts as 1.
Find a formula of value {target} in which each card's number stands exactly once; + - * / and parentheses are allowed.
Answer as JSON: {output}""",
    """\
Four numbers are given by the cards {cards}, where A counts as 1 and where {sentence}.
How do they give {target}, each used once, by + - * / and parentheses? Give JSON of the form {output}""",
    """\
[Goal] {target}
[Cards] {cards}
[Rule] {sentence}. A counts as 1. No number may be left out or used twice.
[Operations] + - * / and parentheses
[Output] {output}""",
)
"""Ways to ask the same; the first is the task's own, the last is kept from training."""

OUTPUT = '{"cards": [...], "number": [...], "formula": "..."}'
WORKED_OUTPUT = '{"cards": [...], "number": [...], "steps": "...", "formula": "..."}'
"""The answer's shape, with the way to the formula and without."""

IN_THE_PICTURE = "in the picture"

REVISION = "You failed this trial because {message}. Try again."


def card_list(ranks: Sequence[int]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in rank_names(ranks)) + "]"


def question(
    ranks: Sequence[int] | None, rule: Rule, target: int, wording: str = QUESTION, *, worked: bool = False
) -> str:
    """The user's first turn for a hand of cards in the order they lie, or with None for cards on a picture.

    ``wording`` is one of :data:`WORDINGS`; ``worked`` asks for the steps ahead of the formula.
    """
    cards = IN_THE_PICTURE if ranks is None else card_list(ranks)
    output = WORKED_OUTPUT if worked else OUTPUT
    return wording.format(target=target, sentence=rule.sentence, cards=cards, output=output)


def answer(
    ranks: Sequence[int], rule: Rule, formula: str, target: int, steps: Sequence[str] | None = None
) -> str:
    """The assistant's turn in the demanded shape, with ``steps`` if they are asked for."""
    numbers = ", ".join(map(str, rule.numbers(ranks)))
    work = "" if steps is None else f'"steps": "{", ".join(steps)}", '
    return f'{{"cards": {card_list(ranks)}, "number": [{numbers}], {work}"formula": "{formula}={target}"}}'


def revision(message: str) -> str:
    """The user's turn after a wrong answer (Chu et al., section 3: the verifier's words enter the prompt)."""
    # The messages of the published code bring their own full stop.
    return REVISION.format(message=message.removesuffix("."))
