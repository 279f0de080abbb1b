from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sftrl_fast.core import UserError
from sftrl_fast.runtime.checkpoint import RunFolder
from sftrl_fast.runtime.metrics import MetricsLog


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", "x") as folder:
        yield folder


def scalars(folder: RunFolder, run: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder.tensorboard / run)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_row_is_one_json_line_and_readable_at_once(folder: RunFolder) -> None:
    with MetricsLog(folder, tensorboard=False) as log:
        log.write({"stage": "rl", "step": 1, "reward": 0.1 + 0.2, "set": "id", "done": False, "kl": None})
        lines = folder.metrics_path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"stage": "rl", "step": 1, "reward": 0.1 + 0.2, "set": "id", "done": False, "kl": None}
    ]
    assert not folder.tensorboard.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_is_null_there_and_itself_in_tensorboard(folder: RunFolder, value: float) -> None:
    with MetricsLog(folder) as log:
        log.write({"stage": "sft", "step": 1, "loss": value})
    assert json.loads(folder.metrics_path.read_text())["loss"] is None
    ((_, shown),) = scalars(folder, "run")["sft/loss"]
    assert shown == value or (math.isnan(shown) and math.isnan(value))


def test_a_value_that_is_no_plain_number_is_refused_and_not_half_written(folder: RunFolder) -> None:
    with MetricsLog(folder) as log:
        with pytest.raises(TypeError):
            log.write({"step": 1, "loss": np.float32(1)})  # type: ignore[dict-item]
        assert log.position == 0


def test_numbers_are_charted_by_stage_and_seed_and_nothing_else_is(folder: RunFolder) -> None:
    with MetricsLog(folder) as log:
        for seed in (0, 4):
            log.write({"seed": seed, "stage": "rl", "step": 3, "reward": 0.5 + seed, "set": "id", "ok": True})
        log.write({"stage": "base", "rate": 0.5})
    assert scalars(folder, "seed0") == {"rl/reward": [(3, 0.5)]}
    assert scalars(folder, "seed4") == {"rl/reward": [(3, 4.5)]}
    assert not (folder.tensorboard / "run").exists()


def test_truncation_forgets_the_rows_after_the_position(folder: RunFolder) -> None:
    with MetricsLog(folder) as log:
        for step in (1, 2):
            log.write({"stage": "rl", "step": step, "reward": float(step)})
        position = log.position
        log.write({"stage": "rl", "step": 3, "reward": -9.0})
    kept = folder.metrics_path.read_bytes()[:position]
    # What a process killed in mid-row leaves.
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"stage": "rl", "ste')
    with MetricsLog(folder) as log:
        log.truncate(position)
        assert folder.metrics_path.read_bytes() == kept
        log.write({"stage": "rl", "step": 3, "reward": 3.0})
    rows = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    assert [row["reward"] for row in rows] == [1.0, 2.0, 3.0]
    assert scalars(folder, "run") == {"rl/reward": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_truncation_to_nothing_starts_anew(folder: RunFolder) -> None:
    with MetricsLog(folder) as log:
        log.write({"step": 1, "loss": 1.0})
        log.truncate(0)
        assert folder.metrics_path.read_bytes() == b""
        assert not folder.tensorboard.exists()


@pytest.mark.parametrize("position", [5, 10_000])
def test_a_position_where_no_row_ends_is_refused(folder: RunFolder, position: int) -> None:
    with MetricsLog(folder) as log:
        log.write({"step": 1, "loss": 1.0})
        with pytest.raises(UserError, match=f"no row ends at byte {position}"):
            log.truncate(position)
        assert len(folder.metrics_path.read_bytes().splitlines()) == 1
