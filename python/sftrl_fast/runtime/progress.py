"""What a run is doing: a live display on a terminal, plain lines elsewhere. Written to standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Display

PLAIN_INTERVAL_SECONDS = 30.0


class Stage:
    """One stage of a run, such as the warm-up of one seed: how far it is and how fast. :class:`Progress`
    keeps it.
    """

    def __init__(
        self, name: str, total: float | None, done: float, unit: str, clock: Callable[[], float]
    ) -> None:
        self.name, self.total, self.done, self.unit = name, total, done, unit
        self.share = done / total if total else 0.0
        self.tokens = 0
        self.values: dict[str, float] = {}
        self._clock = clock
        self._began_at = clock()
        self._began_with = (done, self.share)

    def advance(self, amount: float, tokens: int, share: float | None, values: dict[str, float]) -> None:
        self.done += amount
        self.tokens += tokens
        self.values.update(values)
        if share is not None:
            self.share = share
        elif self.total:
            self.share = self.done / self.total

    @property
    def seconds(self) -> float:
        """Since this process began the stage."""
        return self._clock() - self._began_at

    @property
    def rate(self) -> float:
        """Units a second, the mean over :attr:`seconds`; what was done before a resume does not count."""
        return (self.done - self._began_with[0]) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None as long as nothing is known of the pace."""
        gained = self.share - self._began_with[1]
        return self.seconds * max(1.0 - self.share, 0.0) / gained if gained > 0 else None

    def count(self) -> str:
        """How far it is: ``12/60 steps``."""
        total = "" if self.total is None else f"/{self.total:,.6g}"
        return f"{self.done:,.6g}{total} {self.unit}s"

    def pace(self) -> str:
        """Rate, tokens a second, and the values that came last."""
        parts = [f"{self.rate:,.3g} {self.unit}s/s"]
        if self.tokens and self.seconds > 0:
            parts.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        return ", ".join([*parts, *(f"{name} {value:.4g}" for name, value in self.values.items())])

    def left(self) -> str:
        return "" if self.seconds_left is None else f"{_duration(self.seconds_left)} left"


class Progress:
    """Shows the stages of a run, one after the other; a context manager around them all.

    On a terminal finished stages stay above the running one. Elsewhere each stage prints a line at its start,
    one at its end and one every ``interval`` seconds between. ``clock`` returns seconds that never go back.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval: float = PLAIN_INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._stage: Stage | None = None
        console = console or Console(stderr=True)
        self._view: _Live | _Plain = (
            _Live(console) if console.is_terminal else _Plain(console, interval, clock)
        )

    def __enter__(self) -> Progress:
        self._view.open()
        return self

    def __exit__(self, *fault: object) -> None:
        self._end_stage()
        self._view.close()

    def stage(self, name: str, total: float | None = None, *, done: float = 0, unit: str = "step") -> None:
        """Begin a stage of ``total`` units, ``done`` of which an earlier process did; ends the one before.

        ``total`` is None where something else than a count ends the stage; see ``share`` of :meth:`advance`.
        """
        self._end_stage()
        self._stage = Stage(name, total, done, unit, self._clock)
        self._view.begin(self._stage)

    def advance(
        self, amount: float = 1, *, tokens: int = 0, share: float | None = None, **values: float
    ) -> None:
        """Book ``amount`` more units and ``tokens`` more tokens of the current stage.

        ``share``, 0..1, is the part of the stage that now lies behind, where no total tells. ``values``, such
        as loss or reward, are shown until newer ones come.
        """
        if self._stage is None:
            raise RuntimeError("advance() needs a stage; call stage() first")
        self._stage.advance(amount, tokens, share, values)
        self._view.update(self._stage)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._view.end(self._stage)
            self._stage = None


class _Live:
    """A bar for each stage, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._task = TaskID(0)
        self._display = Display(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[pace]}", style="dim"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )

    def open(self) -> None:
        self._display.start()

    def close(self) -> None:
        self._display.stop()

    def begin(self, stage: Stage) -> None:
        self._task = self._display.add_task(stage.name, total=1, count=stage.count(), pace="", left="")
        self._display.update(self._task, completed=stage.share)

    def update(self, stage: Stage) -> None:
        self._display.update(
            self._task, completed=stage.share, count=stage.count(), pace=stage.pace(), left=stage.left()
        )

    def end(self, stage: Stage) -> None:
        # Complete, whatever the count says, so that the spinner stops: a stage that a signal cut short is
        # over too.
        self._display.update(
            self._task, completed=1, pace=stage.pace(), left=f"took {_duration(stage.seconds)}"
        )


class _Plain:
    """Lines, for logs and pipes."""

    def __init__(self, console: Console, interval: float, clock: Callable[[], float]) -> None:
        self._console, self._interval, self._clock = console, interval, clock
        self._said_at = clock()

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def begin(self, stage: Stage) -> None:
        self._say(f"{stage.name}: begins at {stage.count()}")

    def update(self, stage: Stage) -> None:
        if self._clock() - self._said_at >= self._interval:
            self._say(", ".join(filter(None, [f"{stage.name}: {stage.count()}", stage.pace(), stage.left()])))

    def end(self, stage: Stage) -> None:
        self._say(f"{stage.name}: ended at {stage.count()} after {_duration(stage.seconds)}, {stage.pace()}")

    def _say(self, line: str) -> None:
        self._said_at = self._clock()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
