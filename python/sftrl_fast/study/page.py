"""The results as tables: for the terminal (rich) and for a page (Markdown), both from ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

ARM_NAMES = {"base": "base", "warmup": "warm-up", "sft": "SFT", "rl": "RL"}
COMPUTE_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "samples": ("samples", "{:,.0f}".format),
    "tokens": ("tokens", "{:,.0f}".format),
    "flops": ("FLOPs", "{:.3g}".format),
    "flops_executed": ("FLOPs executed", "{:.3g}".format),
    "seconds": ("seconds", "{:,.1f}".format),
}
RATE_TITLES = {
    "first_try": "First tries: decisions answered rightly at the first attempt",
    "accuracy": "Steps: answers that were right, every attempt counted",
    "recognition": "Recognition: answers that read rightly what was shown",
}
Results = Mapping[str, Any]
Section = tuple[str, list[str], list[list[str]]]
"""Title, header, rows; a row whose first cell is indented belongs to the row above it."""


def table(results: Results) -> Table:
    """The rates, the paired differences and the compute of ``results``, as one thing to print."""
    grid = Table.grid(padding=(0, 0, 1, 0))
    for title, header, rows in _sections(results):
        part = Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for place, name in enumerate(header):
            part.add_column(name, justify="right" if place else "left", no_wrap=not place, overflow="fold")
        for row in rows:
            part.add_row(*map(Text, row), style="dim" if row[0].startswith(" ") else None)
        grid.add_row(part)
    grid.add_row(Text(_footnote(results), style="dim"))
    return grid


def markdown(results: Results) -> str:
    """The same sections as pipe tables, ending in a newline."""
    blocks = []
    for title, header, rows in _sections(results):
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, rule, *map(_markdown_row, rows))]
        blocks.append(f"**{title}**\n\n" + "\n".join(lines))
    return "\n\n".join([*blocks, _footnote(results)]) + "\n"


def _sections(results: Results) -> list[Section]:
    sections = [_rates(results)]
    sections += [_beside(name, results) for name in results.get("rates", {})]
    if results["differences"]:
        sections.append(_differences(results))
    if results["compute"]:
        sections.append(_compute(results))
    return sections


def _rates(results: Results) -> Section:
    arms, seeds = results["arms"], results["seeds"]
    sets = list(next(iter(arms.values())))
    rows = []
    for arm, cells in arms.items():
        rows.append([ARM_NAMES.get(arm, arm), *(_rate(cells[name]) for name in sets)])
        if len(seeds) > 1:
            for seed, by_arm in seeds.items():
                rows.append([f"  seed {seed}", *(_count(by_arm[arm][name]) for name in sets)])
    sizes = next(iter(next(iter(seeds.values())).values()))
    header = ["", *(_size(name, sizes[name]["n"], results) for name in sets)]
    return f"Success, {_level(results)} interval over questions", header, rows


def _beside(rate: str, results: Results) -> Section:
    """What the task counts beside success: an answer may read rightly and reckon wrongly, a walk fail at one point."""
    sets = list(next(iter(results["arms"].values())))
    rows = []
    for arm, rates in results["rates"][rate].items():
        cells = [f"{100 * rates[name]:.1f} %" if name in rates else "-" for name in sets]
        rows.append([ARM_NAMES.get(arm, arm), *cells])
    return RATE_TITLES.get(rate, rate), ["", *sets], rows


def _differences(results: Results) -> Section:
    sets = list(next(iter(results["differences"].values())))
    several = len(results["seeds"]) > 1
    rows = []
    for key, cells in results["differences"].items():
        rows.append([_pair(key), *(_difference(cells[name]) for name in sets)])
        if several:
            rows.append(["  over questions", *(_questions(cells[name]) for name in sets)])
        for seed in results["seeds"]:
            rows.append(
                [f"  seed {seed}", *(_seed_difference(cells[name]["per_seed"][seed]) for name in sets)]
            )
    cover = "over seeds (Student's t)" if several else "over questions"
    return f"Paired difference in points, {_level(results)} interval {cover}", ["", *sets], rows


def _compute(results: Results) -> Section:
    rows = []
    for arm, spent in results["compute"].items():
        cells = [form(spent[key]) if key in spent else "-" for key, (_, form) in COMPUTE_COLUMNS.items()]
        rows.append([ARM_NAMES.get(arm, arm), *cells])
    return "Compute", ["", *(name for name, _ in COMPUTE_COLUMNS.values())], rows


def _rate(cell: Mapping[str, float]) -> str:
    return f"{100 * cell['rate']:.1f} % [{100 * cell['low']:.1f},{100 * cell['high']:.1f}]"


def _count(cell: Mapping[str, float]) -> str:
    return f"{100 * cell['rate']:.1f} % ({cell['successes']}/{cell['n']})"


def _difference(cell: Mapping[str, Any]) -> str:
    return f"{100 * cell['mean']:+.1f} {_interval(cell)} {_p(cell['p'])}"


def _questions(cell: Mapping[str, Any]) -> str:
    return f"{_interval(cell['questions'])} {_p(cell['questions']['p'])}"


def _size(name: str, items: int, results: Results) -> str:
    """The set with its items, and its questions where they are fewer."""
    questions = results["questions"].get(name, items)
    return f"{name} ({items:,})" if questions == items else f"{name} ({items:,}; {questions:,} questions)"


def _seed_difference(cell: Mapping[str, float]) -> str:
    return f"{100 * cell['difference']:+.1f} (+{cell['gained']} -{cell['lost']}) {_p(cell['p'])}"


def _interval(cell: Mapping[str, float]) -> str:
    """Without a blank inside, so that a narrow terminal breaks a cell ahead of it or after it."""
    return f"[{100 * cell['low']:+.1f},{100 * cell['high']:+.1f}]"


def _p(p: float | None) -> str:
    if p is None:
        return "p -"
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("=0.", "=.")


def _pair(key: str) -> str:
    return " - ".join(ARM_NAMES.get(arm, arm) for arm in key.split("-"))


def _level(results: Results) -> str:
    return f"{100 * results['confidence']:g} %"


def _footnote(results: Results) -> str:
    count = len(results["seeds"])
    lines = [f"{count} seeds: rates are means over them." if count > 1 else "1 seed."]
    if results["differences"]:
        lines.append(
            "(+gained -lost): items only the first, only the second arm solves; exact p by question."
        )
    if count > 1:
        lines.append(
            "Intervals of rates are clustered by question; over questions: bootstrap, exact sign-flip p."
        )
    return "\n".join(lines)


def _markdown_row(row: Sequence[str]) -> list[str]:
    """Indentation is lost in a pipe table, so rows of detail are set in italics there."""
    return [f"*{cell.strip()}*" for cell in row] if row[0].startswith(" ") else list(row)
