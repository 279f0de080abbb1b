"""Ctrl-C and SIGTERM as a flag that the trainer reads between two steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class StopSignal:
    """While the block runs, the first SIGINT or SIGTERM only sets :attr:`requested`; a second Ctrl-C raises
    ``KeyboardInterrupt`` at once. The handlers that stood before come back at the end.

    Blocks may nest: the outer one learns of what the inner one heard, and an inner one starts with what the
    outer one knows. Python runs signal handlers in the main thread, so entering the block elsewhere is a
    ``ValueError``.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The signal that asked to stop."""
        self._outer: StopSignal | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 130 after Ctrl-C, 143 after SIGTERM, 0 if neither came."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> StopSignal:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        outer = getattr(self._previous[signal.SIGINT], "__self__", None)
        if isinstance(outer, StopSignal):
            self._outer = outer
            self.received = outer.received
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self._note(signal.Signals(number))
            # Unbuffered: a print here could re-enter one that the signal interrupted.
            os.write(2, _NOTICE)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _note(self, received: signal.Signals) -> None:
        self.received = received
        if self._outer is not None:
            self._outer._note(received)
