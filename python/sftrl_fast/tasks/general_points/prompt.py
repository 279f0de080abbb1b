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
[Output] JSON with the cards, their numbers under the rule, and the formula: \
{{"cards": [...], "number": [...], "formula": "..."}}"""

IN_THE_PICTURE = "in the picture"

REVISION = "You failed this trial because {message}. Try again."


def card_list(ranks: Sequence[int]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in rank_names(ranks)) + "]"


def question(ranks: Sequence[int] | None, rule: Rule, target: int) -> str:
    """The user's first turn for a hand of cards in the order they lie, or with None for cards on a picture."""
    cards = IN_THE_PICTURE if ranks is None else card_list(ranks)
    return QUESTION.format(target=target, sentence=rule.sentence, cards=cards)


def answer(ranks: Sequence[int], rule: Rule, formula: str, target: int) -> str:
    """The assistant's turn in the demanded shape."""
    numbers = ", ".join(map(str, rule.numbers(ranks)))
    return f'{{"cards": {card_list(ranks)}, "number": [{numbers}], "formula": "{formula}={target}"}}'


def revision(message: str) -> str:
    """The user's turn after a wrong answer (Chu et al., section 3: the verifier's words enter the prompt)."""
    # The messages of the published code bring their own full stop.
    return REVISION.format(message=message.removesuffix("."))
