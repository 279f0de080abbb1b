"""Card tables: a picture from cards that were drawn before, and from cards that are drawn for it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Bench
from sftrl_fast.tasks.general_points import render

HANDS = [(1, 5, 10, 13), (2, 7, 11, 12), (3, 4, 6, 8), (9, 9, 1, 2)]
SUITS = (0, 3, 0, 3)


def tables(size: int) -> None:
    for hand in HANDS:
        render.draw_table(hand, SUITS, "black", size)


def from_nothing(size: int) -> None:
    render._card.cache_clear()
    tables(size)


def main() -> None:
    bench = Bench("render", "Four cards on a table of 1,200 and of 112 pixels a side")
    bench.missing(
        "the published code itself", "not installable; 16 ms a table and 0.6 s a reset were measured before"
    )
    for size in (112,) if bench.args.quick else (112, 1200):
        bench.compare(
            f"size={size}",
            "time a table",
            "ms",
            {
                "cards kept": lambda size=size: tables(size),
                "cards drawn anew": lambda size=size: from_nothing(size),
            },
            per=len(HANDS),
            ratio_to="cards drawn anew",
            scale="ms",
        )
    bench.finish()


if __name__ == "__main__":
    main()
