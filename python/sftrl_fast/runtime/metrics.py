"""``metrics.jsonl``, one JSON object a line, and the same numbers for TensorBoard.

A run's truth is the JSON lines; the TensorBoard folder is derived from them and is written anew when a run
resumes, so the two never differ.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from sftrl_fast.core import UserError
from sftrl_fast.runtime.checkpoint import RunFolder

Value = float | int | str | bool | None
Row = Mapping[str, Value]


class MetricsLog:
    """Appends rows to the run folder's ``metrics.jsonl``.

    A row that has ``step`` (int) goes to TensorBoard too: each other number, booleans aside, under
    ``<stage>/<name>``, and in a TensorBoard run of its own for each ``seed``, so that seeds share a chart.
    NaN and infinity become ``null`` in the JSON, which has no word for them; TensorBoard gets them as they
    are.
    """

    def __init__(self, run_folder: RunFolder, tensorboard: bool = True) -> None:
        self._path = run_folder.metrics_path
        self._charts = run_folder.tensorboard if tensorboard else None
        self._writers: dict[str, SummaryWriter] = {}
        try:
            self._file = self._path.open("ab")
        except OSError as fault:
            raise UserError(f"{str(self._path)!r} cannot be written: {fault.strerror}") from None

    def write(self, row: Row) -> None:
        """Append one row and hand it to the operating system.

        Raises:
            UserError: the file cannot be written, as with a full disk.
            TypeError: a value is not a plain number, string, boolean or None.
        """
        line = json.dumps({name: _finite(value) for name, value in row.items()}, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as fault:
            raise UserError(f"{str(self._path)!r} cannot be written: {fault.strerror}") from None
        self._chart(row)

    @property
    def position(self) -> int:
        """Bytes of ``metrics.jsonl`` so far, all of them on disk: a checkpoint that stores this can rely on
        them.
        """
        os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, position: int) -> None:
        """Cut back to a :attr:`position` that a checkpoint stored, and write the TensorBoard folder anew.

        Raises:
            UserError: the file is shorter than ``position``, or no row ends there.
        """
        kept = self._path.read_bytes()[:position]
        if len(kept) < position or not (position == 0 or kept.endswith(b"\n")):
            raise UserError(
                f"{str(self._path)!r} does not belong to the checkpoint beside it: "
                f"no row ends at byte {position}"
            )
        os.truncate(self._path, position)
        self._file.seek(position)
        self._close_writers()
        if self._charts is not None and self._charts.exists():
            shutil.rmtree(self._charts)
        for line in kept.splitlines():
            self._chart(json.loads(line))

    def close(self) -> None:
        self._file.close()
        self._close_writers()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chart(self, row: Row) -> None:
        step = row.get("step")
        if self._charts is None or not isinstance(step, int):
            return
        run = f"seed{row['seed']}" if "seed" in row else "run"
        if run not in self._writers:
            self._writers[run] = SummaryWriter(str(self._charts / run))
        prefix = f"{row['stage']}/" if "stage" in row else ""
        for name, value in row.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and name not in ("step", "seed"):
                self._writers[run].add_scalar(prefix + name, value, step)

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
