"""``sftrl-fast train``: warm-up, SFT arm, RL arm, and the table that compares them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrl_fast.cli.settings import add_config_arguments, config_from, parse_overrides
from sftrl_fast.config import Config
from sftrl_fast.core import UserError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train",
        help="warm up a model, train it on by SFT and by RL, and compare the two",
        usage="sftrl-fast train [--config FILE | --preset NAME] [--out DIR] [--section.key VALUE ...]\n"
        "       sftrl-fast train --resume DIR",
        description="Warm-up SFT, then from there the SFT arm and the RL arm at equal cost, each evaluated "
        "in and out of distribution. Ctrl-C and SIGTERM save a checkpoint first; a second Ctrl-C does not.",
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder, new or empty (default runs/<preset>-<time>)"
    )
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    parser.set_defaults(run=run, takes_settings=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    overrides = parse_overrides(Config, rest)
    if args.resume is not None:
        _check_alone(args, overrides)
    else:
        config, name = config_from(args, overrides)

    from sftrl_fast.runtime.stop import StopSignal
    from sftrl_fast.study import run as study

    with StopSignal() as stop:
        done = study.run(config, args.out, name) if args.resume is None else study.resume(args.resume)
    if done.results is None:
        print(f"stopped; go on with: sftrl-fast train --resume {done.folder}", file=sys.stderr)
        return stop.exit_code
    _show(done.folder, done.results)
    return 0


def _check_alone(args: argparse.Namespace, overrides: dict[str, Any]) -> None:
    others = [f"--{name}" for name in ("config", "preset", "out") if getattr(args, name) is not None]
    others += [f"--{key}" for key in overrides]
    if others:
        raise UserError(f"--resume takes its settings from the run folder; leave out {', '.join(others)}")


def _show(folder: Path, results: dict[str, Any]) -> None:
    from rich.console import Console

    from sftrl_fast.study.page import table

    Console().print(table(results))
    print(f"results  {folder / 'results.json'}")
    for figure in sorted((folder / "figures").iterdir()):
        print(f"figure   {figure}")
