"""The harness of every script under ``bench/``: sides in turn, medians, memory, machine and commit.

bench = Bench("verify", "Response text to verdict, batches of 4,096")
sides = {"cpp": run_cpp, "python": run_python}
bench.compare("exact", "time a response", "us", sides, per=4096, ratio_to="python", scale="us")
bench.finish()
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
SCALES = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
MEBIBYTE = 2**20
PROFILE_ROWS = 15


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. ``ratio`` is the speed of ``impl`` over that of ``ratio_to``: above 1 is better."""

    bench: str
    case: str
    impl: str
    metric: str
    value: float | None
    """None where this machine cannot measure it."""
    unit: str
    ratio_to: str | None
    ratio: float | None
    machine: str
    commit: str


class Bench:
    """Collects the rows of one script; :meth:`finish` prints and writes them."""

    def __init__(
        self,
        name: str,
        description: str,
        argv: Sequence[str] | None = None,
        options: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> None:
        """Read the command line; ``options`` adds the script's own, which are found in ``args`` then."""
        self.name = name
        parser = _parser(description)
        if options is not None:
            options(parser)
        self.args = parser.parse_args(argv)
        self.rows: list[Row] = []
        self.absent: dict[str, str] = {}
        self.machine, self.commit = machine(), commit()
        if self.args.threads is not None:
            _limit_threads(self.args.threads)

    def compare(
        self,
        case: str,
        metric: str,
        unit: str,
        sides: Mapping[str, Callable[[], object]],
        *,
        per: float = 1.0,
        ratio_to: str,
        repeat: int = 5,
        warmup: int = 1,
        scale: str = "s",
        memory: bool = True,
    ) -> dict[str, float]:
        """Time the sides in turn (A B A B ...); add a row of median time and one of memory for each.

        Args:
            case: what is measured; under ``--quick`` it is recorded as ``quick:<case>``.
            metric, unit: what the number is, such as ``time a response`` and ``us``.
            sides: implementation -> one run of it; GPU work is waited for.
            per: how many things one run does; times are given for one of them.
            ratio_to: the side that ratios are against. It may be absent if :meth:`missing` said so.
            repeat, warmup: timed and untimed runs of each side.
            scale: unit of time of the recorded value: ``s``, ``ms``, ``us`` or ``ns``.
            memory: whether to add the rows of memory.

        Returns the median seconds of each side's runs.

        Memory is the growth of the process's peak resident size during a run, median over the runs, where the
        kernel lets a process reset its peak (Linux), else None; on a GPU a further row gives the peak
        allocation.
        """
        runs = self._in_turn(sides, ratio_to, repeat, warmup)
        seconds = _median_seconds(runs)
        for impl, of_side in runs.items():
            value = seconds[impl] * SCALES[scale] / per
            self.value(case, impl, metric, value, unit, *_ratio(seconds, impl, ratio_to))
            if memory:
                self._memory(case, impl, "peak memory growth", of_side)
        self._profile_each(case, sides)
        return seconds

    def compare_rate(
        self,
        case: str,
        metric: str,
        unit: str,
        sides: Mapping[str, Callable[[], object]],
        *,
        work: float,
        ratio_to: str,
        repeat: int = 5,
        warmup: int = 1,
        pids: Mapping[str, Callable[[], Sequence[int]]] | None = None,
    ) -> dict[str, float]:
        """Like :meth:`compare`, but the value is ``work`` (things done by one run) over the median time, a second.

        ``pids`` is for sides that run in processes of their own: it tells each side's processes. They get a row
        ``peak memory`` instead of the growth in this process: the sum of their peak resident sizes during a run,
        what they held before included, median over the runs; pages that they share count once for each.
        Returns the median seconds of each side.
        """
        pids = pids or {}
        runs = self._in_turn(sides, ratio_to, repeat, warmup, pids)
        seconds = _median_seconds(runs)
        for impl, of_side in runs.items():
            rate = work / seconds[impl]
            self.value(case, impl, metric, rate, unit, *_ratio(seconds, impl, ratio_to))
            self._memory(case, impl, "peak memory" if impl in pids else "peak memory growth", of_side)
        self._profile_each(case, sides)
        return seconds

    def _memory(self, case: str, impl: str, metric: str, runs: Sequence[_Run]) -> None:
        self.value(case, impl, metric, _median(run.host_bytes for run in runs), "MiB")
        if any(run.device_bytes is not None for run in runs):
            self.value(case, impl, "peak GPU memory", _median(run.device_bytes for run in runs), "MiB")

    def _in_turn(
        self,
        sides: Mapping[str, Callable[[], object]],
        ratio_to: str,
        repeat: int,
        warmup: int,
        pids: Mapping[str, Callable[[], Sequence[int]]] | None = None,
    ) -> dict[str, list[_Run]]:
        if ratio_to not in sides and ratio_to not in self.absent:
            raise ValueError(
                f"ratio_to = {ratio_to!r} is neither a side nor missing; sides: {', '.join(sides)}"
            )
        pids = pids or {}
        for _ in range(warmup):
            for side in sides.values():
                side()
        runs: dict[str, list[_Run]] = {impl: [] for impl in sides}
        for _ in range(repeat):
            for impl, side in sides.items():
                runs[impl].append(_measure(side, pids[impl]() if impl in pids else None))
        return runs

    def value(
        self,
        case: str,
        impl: str,
        metric: str,
        value: float | None,
        unit: str,
        ratio_to: str | None = None,
        ratio: float | None = None,
    ) -> None:
        """Add a row measured by the script itself; a ``ratio`` above 1 must mean that ``impl`` is better."""
        case = f"quick:{case}" if self.args.quick else case
        row = Row(self.name, case, impl, metric, value, unit, ratio_to, ratio, self.machine, self.commit)
        self.rows.append(row)

    def missing(self, peer: str, why: str) -> None:
        """Say that ``peer`` could not be run here, so that its absence shows in the output."""
        self.absent[peer] = why

    def finish(self) -> None:
        """Print the table; write the rows as ``--json`` and ``--record`` ask."""
        console = Console()
        console.print(self._table())
        for peer, why in self.absent.items():
            console.print(f"missing peer: {peer} ({why})", markup=False, highlight=False)
        if self.args.json is not None:
            self.args.json.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
        if self.args.record:
            record(self.rows, ROOT / "bench" / "results" / f"{self.name}.csv")

    def _table(self) -> Table:
        table = Table(title=f"{self.name}: {self.machine}, commit {self.commit}", title_justify="left")
        for column in ("case", "impl", "metric", "value", "ratio"):
            table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
        for row in self.rows:
            value = "not measurable" if row.value is None else f"{row.value:,.4g} {row.unit}"
            ratio = "" if row.ratio is None else f"{row.ratio:,.3g} x {row.ratio_to}"
            table.add_row(row.case, row.impl, row.metric, value, ratio)
        return table

    def _profile_each(self, case: str, sides: Mapping[str, Callable[[], object]]) -> None:
        if self.args.profile:
            for impl, side in sides.items():
                self._profile(case, impl, side)

    def _profile(self, case: str, impl: str, side: Callable[[], object]) -> None:
        """One run under torch.profiler: a table of operations, and a trace for Perfetto."""
        from torch import profiler  # only asked for here: most scripts need no torch

        with profiler.profile(record_shapes=True) as profile, profiler.record_function(impl):
            side()
            _synchronize()
        stem = re.sub(r"[^\w.-]+", "-", f"{self.name}.{case}.{impl}")
        trace = ROOT / "build" / "profile" / f"{stem}.json"
        trace.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(trace))
        print(f"{case}, {impl}: trace in {trace}")
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=PROFILE_ROWS))


@dataclass(frozen=True, slots=True)
class _Run:
    seconds: float
    host_bytes: float | None
    device_bytes: float | None


def record(rows: Sequence[Row], path: Path) -> None:
    """Append ``rows`` to a CSV file, today's date (UTC) first; the header is written when the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["date", *(field.name for field in fields(Row))]
    new = not path.exists()
    today = datetime.now(UTC).date().isoformat()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({"date": today, **asdict(row)} for row in rows)


def machine() -> str:
    """Processor, cores this process may use, memory, system, Python, and the GPU if the script uses torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        _cpu_model(),
        f"{cores} cores",
        f"{memory:.0f} GiB",
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
    ]
    torch = _torch()
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def machine_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def commit() -> str:
    """``git describe --always --dirty`` of this checkout; ``unknown`` outside of one or without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a JSON list")
    parser.add_argument("--quick", action="store_true", help="smaller cases, named quick:<case>")
    parser.add_argument("--profile", action="store_true", help="torch.profiler trace and table of each side")
    parser.add_argument("--record", action="store_true", help="append the rows to bench/results/<bench>.csv")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of torch and OpenMP")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _limit_threads(threads: int) -> None:
    """OpenMP reads its variable when it starts; a torch that is already there must be told."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(threads)


def _torch() -> ModuleType | None:
    """torch if the script has imported it; timing C++ against Python must not pay for its import."""
    return sys.modules.get("torch")


def _synchronize() -> None:
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _measure(side: Callable[[], object], pids: Sequence[int] | None = None) -> _Run:
    """Time one run. Host memory is this process's growth, or the whole of ``pids`` if the side has its own."""
    torch = _torch()
    on_device = torch is not None and torch.cuda.is_initialized()
    _synchronize()
    if torch is not None and on_device:
        torch.cuda.reset_peak_memory_stats()
    processes: Sequence[int | str] = ["self"] if pids is None else pids
    before = [resident_after_reset(pid) for pid in processes]
    start = time.perf_counter()
    side()
    _synchronize()
    seconds = time.perf_counter() - start
    known = [resident for resident in before if resident is not None]
    host = None
    if len(known) == len(processes):
        peak = sum(status_bytes("VmHWM", pid) for pid in processes)
        host = max(0, peak - (sum(known) if pids is None else 0)) / MEBIBYTE
    device = torch.cuda.max_memory_allocated() / MEBIBYTE if torch is not None and on_device else None
    return _Run(seconds, host, device)


def resident_after_reset(pid: int | str) -> int | None:
    """Reset the peak resident size and return the present one, bytes; None where there is no such reset."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): 5 resets the peak resident set size
    except OSError:
        return None
    return status_bytes("VmRSS", pid)


def status_bytes(key: str, pid: int | str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(f"{key} is not in /proc/{pid}/status")


def _median_seconds(runs: Mapping[str, Sequence[_Run]]) -> dict[str, float]:
    return {impl: statistics.median(run.seconds for run in of_side) for impl, of_side in runs.items()}


def _ratio(seconds: Mapping[str, float], impl: str, ratio_to: str) -> tuple[str, float] | tuple[None, None]:
    return (ratio_to, seconds[ratio_to] / seconds[impl]) if ratio_to in seconds else (None, None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
