"""Which code computes training's hidden states: the engine's kernels, or transformers' own modules.

Order of choice: what :func:`set_pass` said of the model, then ``auto``. An explicit choice never falls back. ``auto``
takes the kernels for the models and types that they cover, and logs its choice once a kind of model.
"""

from __future__ import annotations

import logging

from torch import Tensor
from transformers import PreTrainedModel

from sftrl_fast.core import UserError
from sftrl_fast.models import native_pass, packed
from sftrl_fast.models.packed import PackedTokens

logger = logging.getLogger(__name__)

PASSES = ("native", "transformers")

_WANTED = "sftrl_pass"
"""Attribute of a model: goes with its copies, and into no file."""


def set_pass(model: PreTrainedModel, wanted: str) -> None:
    """Train ``model`` by ``auto``, ``native`` or ``transformers``; ``UserError`` if it cannot be."""
    setattr(model, _WANTED, wanted)
    if wanted != "auto":
        choose_pass(model)


def choose_pass(model: PreTrainedModel) -> str:
    """The name, of :data:`PASSES`, of what computes the model's hidden states now."""
    wanted = getattr(model, _WANTED, "auto")
    if wanted == "transformers":
        return wanted
    reason = native_pass.why_not(model)
    if wanted == "native" and reason:
        raise UserError(
            f"compute.trainer='native' does not cover the model: {reason}; use auto or transformers"
        )
    chosen = "transformers" if reason else "native"
    if wanted == "auto":
        _log_once(type(model).__name__, chosen, reason)
    return chosen


def hidden_states(model: PreTrainedModel, tokens: PackedTokens) -> Tensor:
    """The last hidden state of each token that predicts a wanted one, ``[N, D]``, in the order of ``tokens.source``.

    Raises ``UserError`` for a model that cannot be packed: attention dropout, or a window shorter than a row.
    """
    run = native_pass if choose_pass(model) == "native" else packed
    return run.hidden_states(model, tokens)


_logged: set[tuple[str, str, str]] = set()


def _log_once(kind: str, chosen: str, reason: str) -> None:
    if (kind, chosen, reason) not in _logged:
        _logged.add((kind, chosen, reason))
        why = f"; not native: {reason}" if reason else ""
        logger.info("training of a %s: %s (auto%s)", kind, chosen, why)
