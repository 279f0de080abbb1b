from __future__ import annotations

import io

import pytest
from rich.console import Console

from sftrl_fast.runtime.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock, interval: float = 30.0) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, force_terminal=False, width=60), interval=interval, clock=clock), out


def test_lines_come_at_the_start_at_the_end_and_every_interval() -> None:
    clock = Clock()
    progress, out = plain(clock)
    with progress:
        progress.stage("warm-up", 100)
        for _ in range(100):
            clock.now += 1
            progress.advance(tokens=50, loss=0.25)
    lines = out.getvalue().splitlines()
    assert lines == [
        "warm-up: begins at 0/100 steps",
        "warm-up: 30/100 steps, 1 steps/s, 50 tokens/s, loss 0.25, 0:01:10 left",
        "warm-up: 60/100 steps, 1 steps/s, 50 tokens/s, loss 0.25, 0:00:40 left",
        "warm-up: 90/100 steps, 1 steps/s, 50 tokens/s, loss 0.25, 0:00:10 left",
        "warm-up: ended at 100/100 steps after 0:01:40, 1 steps/s, 50 tokens/s, loss 0.25",
    ]


def test_work_of_an_earlier_process_does_not_count_as_pace() -> None:
    clock = Clock()
    progress, out = plain(clock, interval=0)
    with progress:
        progress.stage("rl", 10, done=8)
        clock.now += 4
        progress.advance()
    assert "rl: 9/10 steps, 0.25 steps/s, 0:00:04 left" in out.getvalue().splitlines()


def test_a_stage_without_a_total_tells_the_time_left_from_its_share() -> None:
    clock = Clock()
    progress, out = plain(clock, interval=0)
    with progress:
        progress.stage("sft")
        clock.now += 10
        progress.advance()
        progress.advance(share=0.25)
    lines = out.getvalue().splitlines()
    assert "left" not in lines[1]
    assert lines[2] == "sft: 2 steps, 0.2 steps/s, 0:00:30 left"


def test_a_new_stage_ends_the_one_before() -> None:
    progress, out = plain(Clock())
    with progress:
        progress.stage("one", 1)
        progress.stage("two", 1)
    assert [line.split(" at")[0] for line in out.getvalue().splitlines()] == [
        "one: begins",
        "one: ended",
        "two: begins",
        "two: ended",
    ]


def test_names_with_brackets_are_not_markup() -> None:
    progress, out = plain(Clock())
    with progress:
        progress.stage("[red]odd[/red]", 1)
    assert "[red]odd[/red]: begins" in out.getvalue()


def test_advance_needs_a_stage() -> None:
    progress, _ = plain(Clock())
    with progress, pytest.raises(RuntimeError, match="stage"):
        progress.advance()


def test_a_terminal_gets_a_live_display_that_ends_with_every_stage() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=120)) as progress:
        progress.stage("warm-up", 2)
        progress.advance(loss=0.5)
        progress.stage("rl")
        progress.advance(share=0.5, reward=1.5)
    last = out.getvalue().rsplit("warm-up", 1)[1]
    assert "1/2 steps" in last
    assert "loss 0.5" in last
    assert "reward 1.5" in last
    assert last.count("took") == 2
