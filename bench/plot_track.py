"""How a figure went from commit to commit: ``python bench/plot_track.py rollout_11b decode_tokens_per_s``.

Reads ``bench/results/<bench>.csv`` and draws the metric of every recording, a line for each implementation and machine
and a panel for each case; what ``floor`` rows say is drawn dotted.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from harness import ROOT

RESULTS = ROOT / "bench" / "results"


def read(bench: str, metric: str) -> list[dict[str, str]]:
    """The rows of one metric, oldest first. Raises SystemExit that names what there is instead."""
    path = RESULTS / f"{bench}.csv"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; benches recorded: {', '.join(_names())}")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["value"]]
    found = [row for row in rows if row["metric"] == metric]
    if not found:
        metrics = sorted({row["metric"] for row in rows})
        raise SystemExit(f"{bench}: no metric {metric!r}; there are: {', '.join(metrics)}")
    return found


def _names() -> list[str]:
    return sorted(path.stem for path in RESULTS.glob("*.csv"))


def draw(rows: Sequence[dict[str, str]], title: str, path: Path) -> None:
    """A panel a case; recordings are evenly spaced and named by date and commit."""
    recordings = list(dict.fromkeys((row["date"], row["commit"]) for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(
        len(cases), 1, figsize=(8, 1 + 3 * len(cases)), sharex=True, squeeze=False, layout="constrained"
    )
    for panel, case in zip(panels[:, 0], cases, strict=True):
        lines: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for row in (row for row in rows if row["case"] == case):
            place = recordings.index((row["date"], row["commit"]))
            lines[row["impl"], row["machine"]].append((place, float(row["value"])))
        for (impl, machine), points in lines.items():
            floor = "floor" in impl
            label = impl if floor else f"{impl} ({machine.split(',')[0]})"
            panel.plot(*zip(*points, strict=True), ":" if floor else "-", marker="o", label=label)
        panel.set_title(case, fontsize=10, loc="left")
        panel.set_ylabel(rows[0]["unit"])
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[-1, 0].set_xticks(
        range(len(recordings)), [f"{date}\n{commit}" for date, commit in recordings], fontsize=8
    )
    panels[-1, 0].set_xlim(-0.5, len(recordings) - 0.5)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="The history of one recorded metric, as a picture")
    parser.add_argument("bench", help=f"one of {', '.join(_names())}")
    parser.add_argument("metric", help="as the column metric has it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bench/results/<bench>.png")
    args = parser.parse_args()
    path = args.out or RESULTS / f"{args.bench}.png"
    draw(read(args.bench, args.metric), f"{args.bench}: {args.metric}", path)
    print(path)


if __name__ == "__main__":
    main()
