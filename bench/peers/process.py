"""A side that runs in a process of its own, so that its memory can be told from the others'.

A side that is not being asked is stopped: some keep threads spinning while they wait, which takes the cores from the
others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

LOG_TAIL = 300


class PeerError(Exception):
    """The worker ended, or could not do what it was asked."""


class Peer:
    """A worker that speaks the protocol of ``serve.py``. What else it prints goes to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """Start it and wait until it is ready. Raises :class:`PeerError` with its last words if it is not."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as out:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                    env=os.environ | env,
                )
            except OSError as error:
                raise PeerError(f"{command[0]}: {error.strerror}") from None
        self._answer()
        self._members = self.pids()
        self._signal(signal.SIGSTOP)

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return self._answer()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        finally:
            self._signal(signal.SIGSTOP)

    def pids(self) -> list[int]:
        """The worker's process and all that it started."""
        found, parents = [self._process.pid], _parents()
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def close(self) -> None:
        """The end of its stdin ends the worker."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._members:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["it ended without a word"]
        return f"{lines[-1].strip()[:LOG_TAIL]}; log: {self._log}"


def worker_env(threads: int) -> dict[str, str]:
    """Variables of a worker that runs in this process's environment and finds what it finds."""
    return {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _parents() -> dict[int, int]:
    """Process -> its parent, where the system tells (Linux)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold anything; the state and the parent follow it.
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found
