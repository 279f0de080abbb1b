"""Optimizer steps whose loss or gradient is not finite: skipped, counted, their batch kept for a look."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sftrl_fast.core import NotFiniteError, Row
from sftrl_fast.runtime.files import write_json
from sftrl_fast.train.optimizer import Optimizer

logger = logging.getLogger(__name__)

LIMIT = 3
"""Skipped steps in a row after which a run stops."""

T = TypeVar("T")


@dataclass(slots=True)
class Guard:
    """Stands around every optimizer step of a run."""

    folder: Path
    """Where batches are kept; made with the first one."""
    skipped: int = 0
    in_a_row: int = 0

    @property
    def exhausted(self) -> bool:
        """True once :data:`LIMIT` steps in a row were skipped: nothing suggests that the next one will be better."""
        return self.in_a_row >= LIMIT

    def attempt(
        self, name: str, rows: Sequence[Row], optimizer: Optimizer, take: Callable[[], T]
    ) -> T | None:
        """What ``take``, one optimizer step on ``rows``, returns; None if it met a number that is not finite.

        Then the gradients are dropped, weights and moments are as before, and the rows stand in ``<name>.json``.
        """
        try:
            taken = take()
        except NotFiniteError as fault:
            optimizer.discard()
            self.skipped += 1
            self.in_a_row += 1
            path = self.folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"reason": str(fault), "rows": [_plain(asdict(row)) for row in rows]})
            logger.warning("%s: optimizer step skipped: %s; its batch is in %s", name, fault, path)
            return None
        self.in_a_row = 0
        return taken


def check_finite(name: str, number: float) -> float:
    """``number``; raises :class:`NotFiniteError` if it is NaN or infinite."""
    if not math.isfinite(number):
        raise NotFiniteError(f"{name} is {number}")
    return number


def _plain(value: Any) -> Any:
    """JSON has no word for NaN and infinity, and they are what one looks for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
