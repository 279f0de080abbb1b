"""Figures of a study: success by set and arm, and the course of training.

Each is a PNG and an SVG, byte for byte the same for the same data and version of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sftrl_fast.runtime.files import replacing
from sftrl_fast.study.compare import ARMS, ordered
from sftrl_fast.study.page import ARM_NAMES, Results

COLOURS = {"base": "#999999", "warmup": "#E69F00", "sft": "#D55E00", "rl": "#0072B2"}
"""Okabe & Ito's palette, made to be told apart under the common forms of colour blindness."""
SET_NAMES = {
    "id_seen": "training rule,\ntrained items",
    "id": "training rule,\nnew items",
    "rule_ood": "shifted rule",
    "visual_ood": "shifted look",
}
STYLE: Any = {  # matplotlib types its keys one by one, and not in every version
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "sftrl-fast",
}
DARK = "#222222"
PNG_DPI = 150
BAR_WIDTH = 0.2


TrainingPoint = Mapping[str, Any]
"""One periodic evaluation: ``arm``, ``seed``, ``step``, ``set``, ``rate`` (0..1), and
``flops``, what the arm has spent so far, warm-up excluded; step and FLOPs are 0 at the warm-up checkpoint."""

Course = dict[int, list[tuple[int, float, float, float]]]
"""seed -> (step, FLOPs, rate in distribution in %, rate out of it in %), by step."""


def plot_rates(results: Results, stem: Path) -> list[Path]:
    """Bars of success per set and arm, with their intervals, and a dot for each seed where there are several.

    Args:
        results: the content of ``results.json``.
        stem: where to write, without suffix; its folder must exist.

    Returns:
        The files written: ``<stem>.png`` and ``<stem>.svg``.
    """
    arms = results["arms"]
    sets = list(next(iter(arms.values())))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.7 * len(sets), 3.2), layout="constrained")
        axes = figure.add_subplot()
        for place, arm in enumerate(arms):
            shift = (place - (len(arms) - 1) / 2) * BAR_WIDTH
            _bars(axes, results, arm, [group + shift for group in range(len(sets))])
        axes.set_xticks(range(len(sets)), [SET_NAMES.get(name, name.replace("_", " ")) for name in sets])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("success (%)")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper center", ncols=len(arms))
        return _save(figure, stem)


def plot_training(
    points: Iterable[TrainingPoint], stem: Path, *, in_distribution: str = "id", shifted: str = "rule_ood"
) -> list[Path]:
    """The course of training: success in and out of distribution against compute, then one against the other.

    Bold lines are means over the seeds, at steps all of them were evaluated at; thin lines are single seeds;
    the ring marks the warm-up checkpoint, step 0. Files as in :func:`plot_rates`.

    Raises:
        ValueError: no arm has points on both sets.
    """
    rows = list(points)
    courses = {
        arm: _course(rows, arm, in_distribution, shifted) for arm in ordered((p["arm"] for p in rows), ARMS)
    }
    courses = {arm: course for arm, course in courses.items() if course}
    if not courses:
        raise ValueError(f"no evaluation during training holds both sets {in_distribution!r} and {shifted!r}")
    inside, outside = (SET_NAMES.get(s, s).replace("\n", " ") for s in (in_distribution, shifted))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.1), layout="constrained")
        panels = figure.subplots(1, 3)
        most = max(row[1] for course in courses.values() for line in course.values() for row in line)
        power = math.floor(math.log10(most)) if most > 0 else 0
        for arm, course in courses.items():
            _draw_course(panels, course, arm, 10.0**power)
        titles = ("In distribution", "Out of distribution", "One against the other")
        across = (f"compute after warm-up ($10^{{{power}}}$ FLOPs)",) * 2 + (f"{inside} (%)",)
        up = (f"{inside} (%)", f"{outside} (%)", f"{outside} (%)")
        for axes, title, x, y in zip(panels, titles, across, up, strict=True):
            axes.set_title(title, loc="left")
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        panels[2].grid(True, axis="x")
        handles, labels = panels[2].get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named))
        return _save(figure, stem)


def _bars(axes: Axes, results: Results, arm: str, places: Sequence[float]) -> None:
    cells = list(results["arms"][arm].values())
    rates = [100 * c["rate"] for c in cells]
    reach = [[100 * (c["rate"] - c["low"]) for c in cells], [100 * (c["high"] - c["rate"]) for c in cells]]
    axes.bar(places, rates, BAR_WIDTH * 0.9, color=COLOURS.get(arm, DARK), label=ARM_NAMES.get(arm, arm))
    axes.errorbar(places, rates, reach, fmt="none", ecolor=DARK, elinewidth=0.9, capsize=2)
    if len(results["seeds"]) < 2:
        return
    for place, name in zip(places, results["arms"][arm], strict=True):
        dots = [100 * by_arm[arm][name]["rate"] for by_arm in results["seeds"].values()]
        step = BAR_WIDTH * 0.5 / (len(dots) - 1)
        spread = [place + (i - (len(dots) - 1) / 2) * step for i in range(len(dots))]
        axes.scatter(spread, dots, s=9, facecolor="white", edgecolor=DARK, linewidth=0.7, zorder=3)


def _course(rows: Sequence[TrainingPoint], arm: str, in_distribution: str, shifted: str) -> Course:
    points = {(p["seed"], p["step"], p["set"]): p for p in rows if p["arm"] == arm}
    course: Course = {}
    for (seed, step, name), point in sorted(points.items(), key=lambda item: item[0]):
        other = points.get((seed, step, shifted))
        if name == in_distribution and other is not None:
            row = (step, float(point["flops"]), 100 * point["rate"], 100 * other["rate"])
            course.setdefault(seed, []).append(row)
    return course


def mean_course(course: Course) -> list[tuple[int, float, float, float]]:
    """The mean over seeds, at each step that every seed was evaluated at."""
    by_step = [{row[0]: row[1:] for row in rows} for rows in course.values()]
    shared = sorted(set.intersection(*(set(rows) for rows in by_step)))
    columns = [
        [sum(c) / len(by_step) for c in zip(*(rows[s] for rows in by_step), strict=True)] for s in shared
    ]
    return [
        (step, flops, inside, outside) for step, (flops, inside, outside) in zip(shared, columns, strict=True)
    ]


def _draw_course(panels: Sequence[Axes], course: Course, arm: str, flops_unit: float) -> None:
    mean = mean_course(course)
    bold: dict[str, Any] = {
        "linewidth": 1.8,
        "marker": "o",
        "markersize": 3,
        "label": ARM_NAMES.get(arm, arm),
    }
    thin: list[tuple[Sequence[tuple[float, ...]], dict[str, Any]]] = (
        [(rows, {"linewidth": 0.7, "alpha": 0.45}) for rows in course.values()] if len(course) > 1 else []
    )
    for rows, look in [*thin, (mean, bold)]:
        flops = [row[1] / flops_unit for row in rows]
        inside, outside = ([row[column] for row in rows] for column in (2, 3))
        for axes, x, y in zip(panels, (flops, flops, inside), (inside, outside, outside), strict=True):
            axes.plot(x, y, color=COLOURS.get(arm, DARK), clip_on=False, **look)
    if mean and mean[0][0] == 0:
        ring: dict[str, Any] = {
            "markersize": 7,
            "markerfacecolor": "white",
            "markeredgecolor": DARK,
            "zorder": 3,
        }
        panels[2].plot(*mean[0][2:], "o", label="warm-up checkpoint", **ring)


def _save(figure: Figure, stem: Path) -> list[Path]:
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with replacing(png) as file:
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    with replacing(svg) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return [png, svg]
