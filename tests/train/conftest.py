from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftrl_fast.models.load import LanguageModel, load


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def numbers() -> Callable[[Path], tuple[Any, Any]]:
    """What two runs must share: a run folder's metrics and results, times aside."""

    def read(folder: Path) -> tuple[Any, Any]:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return _without_times(metrics), _without_times(json.loads((folder / "results.json").read_text()))

    return read


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key != "seconds"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
