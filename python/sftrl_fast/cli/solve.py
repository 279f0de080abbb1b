"""``sftrl-fast solve 3 3 8 8``: every formula that makes the target of a few numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points.rules import RANK_NAMES, RULES


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "solve",
        help="every formula that makes 24 of a few numbers or cards",
        description="Prints every solution, one a line, up to commutativity and associativity. "
        "Exit code 1 if there is none.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "cards", nargs="+", metavar="CARD", help="a number, or with --rule also a card name J, Q, K (A is 1)"
    )
    parser.add_argument("--target", type=int, default=24, metavar="N", help="value to reach (default 24)")
    parser.add_argument("--rule", choices=list(RULES), help="what J, Q and K count")
    parser.set_defaults(run=run, takes_settings=False)


def run(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    import sftrl_fast

    numbers = [_number(card, args.rule) for card in args.cards]
    solutions = sftrl_fast.solve(numbers, args.target)
    for solution in solutions:
        print(solution)
    if not solutions:
        print(f"no solution: {' '.join(map(str, numbers))} cannot make {args.target}", file=sys.stderr)
        return 1
    return 0


def _number(card: str, rule: str | None) -> int:
    name = card.upper()
    if name in ("J", "Q", "K") and rule is None:
        raise UserError(f"card {card!r} needs --rule, one of {', '.join(RULES)}, which says what it counts")
    if name in RANK_NAMES and not name.isdecimal():
        (number,) = RULES[rule or next(iter(RULES))].numbers([RANK_NAMES.index(name) + 1])
        return number
    try:
        return int(card)
    except ValueError:
        raise UserError(f"card {card!r} is neither a whole number nor one of A, J, Q, K") from None
