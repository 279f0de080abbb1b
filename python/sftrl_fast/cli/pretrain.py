"""``sftrl-fast pretrain``: make the ``tiny`` model from nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrl_fast.cli.settings import add_settings_help, parse_overrides
from sftrl_fast.config import PretrainConfig, resolve
from sftrl_fast.core import UserError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "pretrain",
        help="make the tiny model: tokenizer and weights from nothing",
        usage="sftrl-fast pretrain --out DIR [--section.key VALUE ...]",
        description="Trains the tiny model on a generated corpus. The defaults made the one that is shipped.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder, new or empty")
    add_settings_help(parser, PretrainConfig)
    parser.set_defaults(run=run, takes_settings=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    config = resolve(PretrainConfig, [], parse_overrides(PretrainConfig, rest))
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"out={str(args.out)!r} is a file; name a new or empty folder")

    from sftrl_fast.train.pretrain import pretrain

    pretrain(config, args.out)
    print(f"model    {args.out}")
    return 0
