"""``sftrl-fast VERB``: finds the verb, runs it, and turns bad input into one line.

Verbs import torch and the rest of the package inside their ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sftrl_fast.cli import data, doctor, play, pretrain, solve, train, verify
from sftrl_fast.cli import eval as evaluate
from sftrl_fast.core import UserError

PROG = "sftrl-fast"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE."""

VERBS = (train, evaluate, pretrain, data, play, solve, verify, doctor)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="Post-train a language model by SFT and by RL, and see which of the two generalises.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code: 0, 1 (``solve`` found nothing), 2 (bad input), 130 or 143
    (stopped by Ctrl-C or SIGTERM). ``--help`` raises ``SystemExit``, as argparse does."""
    try:
        args, rest = build_parser().parse_known_args(argv)
        if rest and not args.takes_settings:
            raise UserError(f"unknown argument {rest[0]!r} (see {PROG} --help)")
        code: int = args.run(args, rest)
        sys.stdout.flush()
    except UserError as fault:
        print(f"{PROG}: error: {' '.join(str(fault).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code
