"""What users may ask of an environment: its keywords, the options of its ``reset``, the answers of its ``step``.

Each function raises :class:`~sftrl_fast.core.UserError` that names the key, the value and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sftrl_fast.core import UserError


def check_choice(key: str, value: object, choices: Sequence[object]) -> None:
    """``value`` must be one of ``choices``."""
    if value not in choices:
        raise UserError(f"{key}={value!r} is unknown; choose one of {', '.join(map(str, choices))}")


def is_whole(value: object) -> bool:
    """Whether ``value`` is an integer and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_at_least_one(key: str, value: Any) -> None:
    """``value`` must be a whole number from 1."""
    if not is_whole(value) or value < 1:
        raise UserError(f"{key}={value!r} must be a whole number of at least 1")


def check_num_envs(num_envs: object) -> None:
    """The number of a vector environment's rows must be an int from 1."""
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise UserError(f"num_envs={num_envs!r} must be a whole number of at least 1")


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of a ``reset``, all of them ``known``."""
    for key, value in (options or {}).items():
        if key not in known:
            raise UserError(f"options[{key!r}]={value!r} is unknown; reset takes {', '.join(known)}")
    return options or {}


def checked_indices(key: str, value: object, shape: tuple[int, ...], num_items: int) -> np.ndarray:
    """``value`` as numbers of items, int64 of ``shape``, which is ``()`` or one long."""
    indices = np.asarray(value)
    if indices.shape != shape or indices.dtype.kind not in "iu":
        wanted = f"{shape[0]} item numbers" if shape else "an item number"
        raise UserError(f"{key}={value!r} must be {wanted}, from 0 to {num_items - 1}")
    outside = indices[(indices < 0) | (indices >= num_items)]
    if outside.size:
        raise UserError(f"{key}={outside[0]} is outside the set; choose from 0 to {num_items - 1}")
    return indices.astype(np.int64)


def check_answers(answers: Sequence[str], rows: int) -> None:
    """``answers`` must be ``rows`` strings."""
    if isinstance(answers, str) or len(answers) != rows:
        raise UserError(f"answers={answers!r:.60} must be {rows} strings, one a row")
    for row, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise UserError(f"answers[{row}]={answer!r:.60} must be a string")
