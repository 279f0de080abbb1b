"""The bench of training steps runs whole, on the shipped model, and says what it could not run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "bench_train_step.py"


def rows(tmp_path: Path, *sides: str) -> list[dict[str, object]]:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--repeat", "1", "--threads", "1", "--model", "tiny"]
    subprocess.run([*command, "--json", str(out), "--sides", *sides], check=True, capture_output=True)
    found: list[dict[str, object]] = json.loads(out.read_text())
    return found


def metrics(found: list[dict[str, object]], side: str) -> set[object]:
    assert all(float(row["value"]) > 0 for row in found if not str(row["metric"]).endswith("weights"))
    return {row["metric"] for row in found if row["impl"] == side}


TIMES = {"update_time", "step_time", "sft_time"}


def test_own_side_reports_every_time_and_its_memory(tmp_path: Path) -> None:
    found = metrics(rows(tmp_path, "native"), "native")
    assert found == TIMES | {f"{name}: peak memory above the weights" for name in TIMES}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed (the extra `peers`)"
)
def test_both_sides_do_the_same_work(tmp_path: Path) -> None:
    found = rows(tmp_path, "native", "trl")
    assert metrics(found, "native") == metrics(found, "trl") >= TIMES
    assert all(row["ratio_to"] == "trl" for row in found if row["impl"] == "native")
