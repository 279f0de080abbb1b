"""Supervised losses as rows: a loss for each demonstrated token, before the mean over the batch. All are ``[T]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

SFTLoss = Callable[[Tensor, Tensor | None, float], Tensor]
"""(logp, log-probability before the batch's first step or None, clip) -> loss."""


def cross_entropy(logp: Tensor, old_logp: Tensor | None, clip: float) -> Tensor:  # noqa: ARG001 - one signature
    """-logp."""
    return -logp


def dft(logp: Tensor, old_logp: Tensor | None, clip: float) -> Tensor:  # noqa: ARG001
    """-sg(p) logp: a token counts as much as the model believes in it (Dynamic Fine-Tuning, arXiv 2508.05629)."""
    return -logp.detach().exp() * logp


def psft(logp: Tensor, old_logp: Tensor | None, clip: float) -> Tensor:
    """-min(r, 1 + clip) with r = p / p_old: PPO's surrogate at advantage 1 (Proximal SFT, arXiv 2508.17784). A token
    that became likelier by the bound since the batch began has no gradient."""
    assert old_logp is not None
    return -(logp - old_logp).exp().clamp(max=1 + clip)


SFT_LOSSES: Mapping[str, SFTLoss] = MappingProxyType(
    {"cross_entropy": cross_entropy, "dft": dft, "psft": psft}
)
PROXIMAL = {"psft"}
"""Rows that need the log-probabilities before the batch's first step."""
