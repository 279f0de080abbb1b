"""``sftrl-fast eval``: the success rate of one model on the evaluation sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from sftrl_fast.cli.settings import add_config_arguments, config_from, output_file, parse_overrides
from sftrl_fast.config import Config
from sftrl_fast.core import UserError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "eval",
        help="success rates of a model, with intervals",
        usage="sftrl-fast eval --model NAME [--config FILE | --preset NAME] [--set NAME ...] [--json FILE]\n"
        "                       [--section.key VALUE ...]",
        description="Answers each item of the evaluation sets once, greedily, and prints the rates.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="what `model.name` takes: a shipped name, a folder, a hub id",
    )
    parser.add_argument(
        "--set", nargs="+", metavar="NAME", dest="sets", help="only these sets of `task.eval` (default all)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the rates here")
    add_config_arguments(parser)
    parser.set_defaults(run=run, takes_settings=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = parse_overrides(Config, rest)
    if "model.name" in overrides:
        raise UserError("--model.name and --model mean the same; give --model only")
    config, _ = config_from(args, {**overrides, "model.name": args.model})
    sets = _chosen(config, args.sets)

    from sftrl_fast.evaluate import evaluate_model
    from sftrl_fast.runtime.files import write_json
    from sftrl_fast.study.compare import wilson

    rates = {}
    for name, evaluation in evaluate_model(config, sets).items():
        successes, n = sum(evaluation.successes), len(evaluation.successes)
        low, high = wilson(successes, n, config.eval.confidence)
        rate = successes / n if n else 0.0
        rates[name] = {"successes": successes, "n": n, "rate": rate, "low": low, "high": high}
        for key in ("attempts", "accuracy", "first_try"):
            rates[name][key] = getattr(evaluation, key)
    _show(rates, config.eval.confidence)
    if args.json is not None:
        write_json(args.json, {"model": args.model, "confidence": config.eval.confidence, "sets": rates})
    return 0


def _chosen(config: Config, names: Sequence[str] | None) -> dict[str, str]:
    known = config.task.eval
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UserError(f"--set {unknown[0]!r} is no evaluation set; the settings have {', '.join(known)}")
    return {name: known[name] for name in names or known}


def _show(rates: dict[str, dict[str, float]], confidence: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Success rate, {100 * confidence:g} % Wilson interval", title_justify="left")
    columns = (
        "successes",
        "items",
        "rate %",
        "low",
        "high",
        "answers an item",
        "right answers %",
        "right at once %",
    )
    for column in ("set", *columns):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, row in rates.items():
        percent = [f"{100 * row[key]:.1f}" for key in ("rate", "low", "high", "accuracy", "first_try")]
        table.add_row(
            name,
            f"{row['successes']:,}",
            f"{row['n']:,}",
            *percent[:3],
            f"{row['attempts']:.2f}",
            *percent[3:],
        )
    Console().print(table)
