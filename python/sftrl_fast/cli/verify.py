"""``sftrl-fast verify FILE.jsonl``: judge a file of answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftrl_fast.cli.settings import output_file
from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points.rules import RANK_NAMES, RULES
from sftrl_fast.tasks.general_points.verifier import HAND_SIZE, REWARDS

if TYPE_CHECKING:
    from sftrl_fast import Verdicts


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "verify",
        help="judge a file of answers",
        description='Each line of FILE is a JSON object with "response" (the text of an answer) and the true '
        'cards, as "ranks" (four numbers 1..13) or as "cards" (four of A, 2..10, J, Q, K).',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl")
    add("--rule", choices=list(RULES), default="face10", help="what J, Q, K count (default face10)")
    add("--target", type=int, default=24, metavar="N", help="value to reach (default 24)")
    add("--rewards", choices=REWARDS, default="exact", help="reward table (default exact)")
    add("--cards-shown", action="store_true", help="the cards came as a picture: judge how they were read")
    add("--json", type=output_file, metavar="OUT.jsonl", help="write a verdict a line, in the order of FILE")
    parser.set_defaults(run=run, takes_settings=False)


def run(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    import sftrl_fast

    answers = read_answers(args.file)
    if args.json is not None and args.json.exists() and args.json.samefile(args.file):
        raise UserError(f"--json {str(args.json)!r} is the file of answers itself; name another")
    verdicts = sftrl_fast.verify(
        answers.responses,
        answers.ranks,
        rule=args.rule,
        target=args.target,
        rewards=args.rewards,
        cards_shown=args.cards_shown,
    )
    if args.json is not None:
        _write(args.json, answers, verdicts)
    _show(verdicts)
    return 0


@dataclass(slots=True)
class Answers:
    """``n`` answers, the hands they are about, and the lines they stood on."""

    responses: list[str] = field(default_factory=list)
    ranks: list[list[int]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def read_answers(path: Path) -> Answers:
    """The rows of ``path``; blank lines are passed over. ``UserError`` names the line that is wrong."""
    answers = Answers()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    response, ranks = _parse(line, f"{str(path)!r} line {number}")
                    answers.responses.append(response)
                    answers.ranks.append(ranks)
                    answers.lines.append(number)
    except OSError as fault:
        raise UserError(f"{str(path)!r} cannot be read: {fault.strerror}") from None
    if not answers.responses:
        raise UserError(f"{str(path)!r} holds no answers; give one JSON object a line")
    return answers


def _parse(line: bytes, where: str) -> tuple[str, list[int]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{where} is not JSON: {fault}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object with the keys response and ranks (or cards)")
    if not isinstance(row.get("response"), str):
        raise UserError(f"{where}: response={row.get('response')!r} must be a string")
    if ("ranks" in row) == ("cards" in row):
        raise UserError(f"{where} must have either ranks or cards")
    key, valid = ("ranks", range(1, len(RANK_NAMES) + 1)) if "ranks" in row else ("cards", RANK_NAMES)
    cards = row[key]
    fits = isinstance(cards, list) and len(cards) == HAND_SIZE
    if not fits or not all(type(card) is type(valid[0]) and card in valid for card in cards):
        raise UserError(f"{where}: {key}={cards!r} must be {HAND_SIZE} of {valid[0]}..{valid[-1]}")
    return row["response"], cards if key == "ranks" else [RANK_NAMES.index(card) + 1 for card in cards]


def _write(path: Path, answers: Answers, verdicts: Verdicts) -> None:
    from sftrl_fast import Outcome
    from sftrl_fast.runtime.files import write_text

    rows = [
        {
            "line": line,
            "success": bool(outcome == Outcome.RIGHT),
            "outcome": Outcome(outcome).name,
            "reward": float(reward),
            "value": value.tolist() if value[1] else None,
            "cards_ok": bool(cards_ok),
            "message": message,
        }
        for line, outcome, reward, value, cards_ok, message in zip(
            answers.lines,
            verdicts.outcome,
            verdicts.reward,
            verdicts.value,
            verdicts.cards_ok,
            verdicts.messages(),
            strict=True,
        )
    ]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _show(verdicts: Verdicts) -> None:
    from rich.console import Console
    from rich.table import Table

    from sftrl_fast import Outcome

    n = len(verdicts)
    table = Table(title=f"{n:,} answers", title_justify="left", show_footer=True)
    right = int((verdicts.outcome == Outcome.RIGHT).sum())
    table.add_column("outcome", footer="success rate")
    table.add_column("answers", footer=f"{right:,}", justify="right")
    table.add_column("share %", footer=f"{100 * right / n:.1f}", justify="right")
    table.add_column("mean reward", footer=f"{verdicts.reward.mean():.3f} (all)", justify="right")
    for outcome in Outcome:
        rows = verdicts.outcome == outcome
        if count := int(rows.sum()):
            mean = f"{verdicts.reward[rows].mean():.3f}"
            table.add_row(outcome.name, f"{count:,}", f"{100 * count / n:.1f}", mean)
    Console().print(table)
    print(f"cards read rightly: {int(verdicts.cards_ok.sum()):,} of {n:,}")
