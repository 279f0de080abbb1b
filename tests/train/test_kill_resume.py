"""``kill -9`` at random moments, then ``--resume``: the numbers are those of an unbroken run. Minutes; -m slow."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    *("--seeds", "0,1", "--task.verify_iter", "2", "--warmup.steps", "6", "--rl.updates", "6"),
    *("--rl.prompts", "8", "--rl.group", "8", "--eval.limit", "64", "--eval.every", "3"),
    *("--checkpoint.every_seconds", "0.5"),
]
KILLS = 6


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sftrl_fast.cli", "train", *arguments])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_ends_with_the_numbers_of_an_unbroken_one(
    tmp_path: Path, numbers: Callable[[Path], tuple[Any, Any]]
) -> None:
    began = time.monotonic()
    assert _start("--out", str(tmp_path / "whole"), *SETTINGS).wait() == 0
    whole = time.monotonic() - began
    moments = random.Random()
    process = _start("--out", str(tmp_path / "killed"), *SETTINGS)
    kills = 0
    while kills < KILLS:
        try:
            # The upper end lets a process live long enough to pass start-up and reach new steps.
            assert process.wait(moments.uniform(0.3, 1.0) * whole) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = _start("--resume", str(tmp_path / "killed"))
    assert process.wait() == 0
    assert kills >= 1
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
