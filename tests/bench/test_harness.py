from __future__ import annotations

import csv
import importlib.util
import json
import mmap
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

COLUMNS = ["bench", "case", "impl", "metric", "value", "unit", "ratio_to", "ratio", "machine", "commit"]


def load_harness() -> ModuleType:
    """Scripts find ``harness`` beside themselves; from here it is loaded by its path."""
    path = Path(__file__).resolve().parents[2] / "bench" / "harness.py"
    spec = importlib.util.spec_from_file_location("bench_harness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


harness = load_harness()


class Clock:
    """A clock that moves only when a side runs, so that what is reported can be foretold."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def side(self, name: str, *durations: float) -> object:
        remaining = list(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += remaining.pop(0)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    return clock


def rows_of(bench: Any, metric: str) -> dict[str, Any]:
    return {row.impl: row for row in bench.rows if row.metric == metric}


def test_sides_run_in_turn_and_medians_are_scaled(clock: Clock) -> None:
    bench = harness.Bench("demo", "a demo", [])
    sides = {"fast": clock.side("fast", 9.0, 1.0, 3.0, 2.0), "slow": clock.side("slow", 9.0, 8.0, 6.0, 4.0)}
    bench.compare("case", "time an item", "ms", sides, per=10, ratio_to="slow", repeat=3, scale="ms")
    assert clock.calls == ["fast", "slow"] * 4
    times = rows_of(bench, "time an item")
    assert times["fast"].value == pytest.approx(2.0 / 10 * 1000)
    assert times["slow"].value == pytest.approx(6.0 / 10 * 1000)
    assert times["fast"].ratio == pytest.approx(3.0)
    assert times["slow"].ratio == pytest.approx(1.0)
    assert times["fast"].ratio_to == "slow"


def test_json_rows_have_the_agreed_columns(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    bench = harness.Bench("demo", "a demo", ["--json", str(file), "--quick"])
    bench.compare("case", "time", "s", {"only": clock.side("only", 1.0, 1.0)}, ratio_to="only", repeat=1)
    bench.value("case", "only", "accepted", 12, "items")
    bench.finish()
    rows = json.loads(file.read_text())
    assert [list(row) for row in rows] == [COLUMNS] * 3
    assert {row["case"] for row in rows} == {"quick:case"}
    assert rows[-1]["ratio"] is None
    assert all(row["commit"] for row in rows)


def test_missing_peer_is_named_and_its_ratio_left_out(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = harness.Bench("demo", "a demo", [])
    bench.missing("peer", "not installed")
    bench.compare("case", "time", "s", {"ours": clock.side("ours", 1.0, 1.0)}, ratio_to="peer", repeat=1)
    bench.finish()
    assert "missing peer: peer (not installed)" in capsys.readouterr().out
    assert rows_of(bench, "time")["ours"].ratio is None
    assert rows_of(bench, "time")["ours"].ratio_to is None


def test_ratio_to_an_unknown_side_is_refused(clock: Clock) -> None:
    bench = harness.Bench("demo", "a demo", [])
    with pytest.raises(ValueError, match="'peer' is neither a side nor missing; sides: ours"):
        bench.compare("case", "time", "s", {"ours": clock.side("ours", 1.0)}, ratio_to="peer")
    assert clock.calls == []


def test_record_appends_under_one_header(tmp_path: Path) -> None:
    bench = harness.Bench("demo", "a demo", [])
    bench.value("case, with a comma", "ours", "accepted", 12, "items")
    path = tmp_path / "results" / "demo.csv"
    harness.record(bench.rows, path)
    harness.record(bench.rows, path)
    with path.open(newline="") as file:
        written = list(csv.reader(file))
    assert written[0] == ["date", *COLUMNS]
    assert len(written) == 3
    assert written[1] == written[2]
    assert written[1][2] == "case, with a comma"


def take_pages(size: int) -> None:
    """Write to memory that is new to the process: the heap may hold as much that earlier tests have left."""
    with mmap.mmap(-1, size) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


def test_memory_growth_is_seen_where_it_can_be_measured() -> None:
    bench = harness.Bench("demo", "a demo", [])
    sides = {"big": lambda: take_pages(64 * 2**20), "small": lambda: take_pages(1024)}
    bench.compare("case", "time", "s", sides, ratio_to="small", repeat=3)
    growth = {impl: row.value for impl, row in rows_of(bench, "peak memory growth").items()}
    if growth["big"] is None:
        pytest.skip("this kernel does not let a process reset its peak resident size")
    assert 60 <= growth["big"] <= 80
    assert growth["small"] < 8


def test_memory_is_none_where_the_peak_cannot_be_reset(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError("read-only")

    monkeypatch.setattr(harness.Path, "write_text", refuse)
    bench = harness.Bench("demo", "a demo", [])
    bench.compare("case", "time", "s", {"ours": clock.side("ours", 1.0, 1.0)}, ratio_to="ours", repeat=1)
    assert rows_of(bench, "peak memory growth")["ours"].value is None


def test_machine_tells_no_host_name() -> None:
    described = harness.machine()
    assert harness.platform.node() not in described.split(", ")
    assert "cores" in described
    assert "GiB" in described


def test_commit_outside_a_checkout_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    assert harness.commit() == "unknown"


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_a_thread_count_below_one_is_refused(threads: str) -> None:
    with pytest.raises(SystemExit):
        harness.Bench("demo", "a demo", ["--threads", threads])


def test_threads_reach_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(harness, "_torch", lambda: None)
    harness.Bench("demo", "a demo", ["--threads", "1"])
    assert harness.os.environ["OMP_NUM_THREADS"] == "1"


def test_profile_leaves_a_trace_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    bench = harness.Bench("demo", "a demo", ["--profile"])
    bench.compare("a case", "time", "s", {"side-one": lambda: None}, ratio_to="side-one", repeat=1)
    trace = tmp_path / "build" / "profile" / "demo.a-case.side-one.json"
    assert "side-one" in trace.read_text()
    assert "Self CPU" in capsys.readouterr().out
