"""Policy surrogates: a loss for each answer token, before any reduction. All tensors are ``[T]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SurrogateTerms:
    """What a surrogate says about each of T tokens."""

    loss: Tensor
    """``[T]``, to be minimised."""
    ratio: Tensor
    """``[T]``, detached: probability now over probability when sampled."""
    clipped: Tensor
    """bool ``[T]``: True where the token's gradient was cut to zero."""


Surrogate = Callable[[Tensor, Tensor, Tensor, float, float], SurrogateTerms]


def clip(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> SurrogateTerms:
    """-min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old_logp): PPO, arXiv 1707.06347,
    eq. 7; two bounds as in DAPO, arXiv 2503.14476, eq. 10."""
    ratio = (logp - old_logp).exp()
    free = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return SurrogateTerms(-torch.minimum(free, bounded), ratio.detach(), (bounded < free).detach())


def reinforce(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    clip_low: float,  # noqa: ARG001 - one signature for every surrogate of the table
    clip_high: float,  # noqa: ARG001
) -> SurrogateTerms:
    """-A logp, whose gradient is the score-function estimate (Williams, 1992) for fresh samples."""
    ratio = (logp.detach() - old_logp).exp()
    return SurrogateTerms(-advantage * logp, ratio, torch.zeros_like(ratio, dtype=torch.bool))


SURROGATES: Mapping[str, Surrogate] = MappingProxyType({"clip": clip, "reinforce": reinforce})
