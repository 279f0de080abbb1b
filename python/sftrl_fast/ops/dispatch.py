"""The one place where an op meets its implementations.

Order of choice: the ``impl=`` argument, then the environment variable ``SFTRL_IMPL``, then ``auto``. An
explicit choice never falls back: if it cannot run here, :class:`~sftrl_fast.core.UserError` says what can and
why the rest cannot. ``auto`` takes the first available name of :data:`IMPLS` and logs its choice once an op.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sftrl_fast.core import UserError

logger = logging.getLogger(__name__)

IMPLS = ("flash", "triton", "cpp", "torch")
"""Names an implementation may have, the one ``auto`` prefers first."""


def _always() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Implementation:
    """Where a function stands, and whether this machine can run it."""

    target: str
    """``module:function``, imported when first chosen."""
    why_not: Callable[[], str] = _always
    """The reason it cannot run here; the empty string if it can."""


# Each op has its torch reference and nothing else so far; what is not listed does not exist.
OPS: dict[str, dict[str, Implementation]] = {
    "logprob": {"torch": Implementation("sftrl_fast.ops.logprob:logprob_torch")},
    "group_advantage": {"torch": Implementation("sftrl_fast.ops.advantage:group_advantage_torch")},
    "gae": {"torch": Implementation("sftrl_fast.ops.advantage:gae_torch")},
    "sample": {"torch": Implementation("sftrl_fast.ops.sample:sample_torch")},
}


@dataclass(frozen=True, slots=True)
class Availability:
    """One line of ``sftrl-fast doctor``."""

    op: str
    impl: str
    available: bool
    reason: str


def availability(op: str | None = None) -> list[Availability]:
    """A row for each op (or for one) and each name of :data:`IMPLS`, with the reason where it cannot run."""
    rows = []
    for name in OPS if op is None else (op,):
        for impl in IMPLS:
            entry = OPS[name].get(impl)
            reason = "not implemented in this version" if entry is None else entry.why_not()
            rows.append(Availability(name, impl, not reason, reason))
    return rows


def choose(op: str, impl: str | None = None) -> str:
    """The name of the implementation that a call with this ``impl`` argument runs."""
    source, wanted = (
        ("impl", impl) if impl is not None else ("SFTRL_IMPL", os.environ.get("SFTRL_IMPL", "auto"))
    )
    rows = availability(op)
    usable = [row.impl for row in rows if row.available]
    if wanted == "auto":
        _log_once(op, usable[0])
        return usable[0]
    if wanted not in usable:
        reasons = "; ".join(f"{row.impl}: {row.reason}" for row in rows if not row.available)
        raise UserError(
            f"{source}={wanted!r} cannot run op {op!r}; available: {', '.join(usable)} ({reasons})"
        )
    return wanted


def resolve(op: str, impl: str | None = None) -> Callable[..., Any]:
    """The function that runs ``op``; raises :class:`UserError` if an explicit choice is not available."""
    module, _, name = OPS[op][choose(op, impl)].target.partition(":")
    return getattr(importlib.import_module(module), name)


_logged: set[str] = set()


def _log_once(op: str, impl: str) -> None:
    if op not in _logged:
        _logged.add(op)
        logger.info("op %s: implementation %s (auto)", op, impl)
