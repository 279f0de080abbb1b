"""Policy surrogates: a loss for each answer token, before any reduction. All tensors are ``[T]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """T answer tokens of whole rows; each field is ``[T]``."""

    logp: Tensor
    old_logp: Tensor
    advantage: Tensor
    turn: Tensor
    """int64: tokens of one answer have one number, counted from 0."""
    row: Tensor
    """int64: tokens of one row (an episode's answers) have one number, counted from 0."""
    demonstrated: Tensor | None = None
    """bool: tokens that the policy did not draw; None if it drew them all."""


@dataclass(frozen=True, slots=True)
class SurrogateTerms:
    """What a surrogate says about each of T tokens."""

    loss: Tensor
    """``[T]``, to be minimised."""
    ratio: Tensor
    """``[T]``, detached: probability now over probability when sampled, of what the surrogate takes for one action."""
    clipped: Tensor
    """bool ``[T]``: True where the bounds changed the token's gradient."""


Surrogate = Callable[[PolicyTokens, float, float], SurrogateTerms]


def _pooled(log_ratio: Tensor, member: Tensor, *, mean: bool) -> Tensor:
    """Sum or mean of ``log_ratio`` over the tokens of a member, given to each of them."""
    size = int(member.max()) + 1 if len(member) else 0
    pooled = log_ratio.new_zeros(size).index_add_(0, member, log_ratio)
    if mean:
        pooled = pooled / torch.bincount(member, minlength=size)
    return pooled[member]


def _clipped(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> SurrogateTerms:
    """-min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A)."""
    free = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return SurrogateTerms(-torch.minimum(free, bounded), ratio.detach(), (bounded < free).detach())


def clip(tokens: PolicyTokens, clip_low: float, clip_high: float) -> SurrogateTerms:
    """Clipped, r = exp(logp - old_logp) of each token: PPO, arXiv 1707.06347, eq. 7; two bounds as in DAPO, arXiv
    2503.14476, eq. 10."""
    return _clipped((tokens.logp - tokens.old_logp).exp(), tokens.advantage, clip_low, clip_high)


def clip_turn(tokens: PolicyTokens, clip_low: float, clip_high: float) -> SurrogateTerms:
    """Clipped, r the ratio of the probabilities of whole answers: an answer is one action, as in Chu et al. 2025."""
    log_ratio = _pooled(tokens.logp - tokens.old_logp, tokens.turn, mean=False)
    return _clipped(log_ratio.exp(), tokens.advantage, clip_low, clip_high)


def clip_sequence(tokens: PolicyTokens, clip_low: float, clip_high: float) -> SurrogateTerms:
    """Clipped, r the geometric mean of the ratios of a row's tokens: GSPO, arXiv 2507.18071."""
    log_ratio = _pooled(tokens.logp - tokens.old_logp, tokens.row, mean=True)
    return _clipped(log_ratio.exp(), tokens.advantage, clip_low, clip_high)


def clip_weight(tokens: PolicyTokens, clip_low: float, clip_high: float) -> SurrogateTerms:
    """-sg(clamp(r, 1 - clip_low, 1 + clip_high)) A logp: the weight is clipped and no token loses its gradient
    (CISPO, arXiv 2506.13585)."""
    ratio = (tokens.logp.detach() - tokens.old_logp).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return SurrogateTerms(-weight * tokens.advantage * tokens.logp, ratio, weight != ratio)


def reinforce(
    tokens: PolicyTokens,
    clip_low: float,  # noqa: ARG001 - one signature for every surrogate of the table
    clip_high: float,  # noqa: ARG001
) -> SurrogateTerms:
    """-A logp, whose gradient is the score-function estimate (Williams, 1992) for fresh samples."""
    ratio = (tokens.logp.detach() - tokens.old_logp).exp()
    return SurrogateTerms(-tokens.advantage * tokens.logp, ratio, torch.zeros_like(ratio, dtype=torch.bool))


SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {
        "clip": clip,
        "clip_turn": clip_turn,
        "clip_sequence": clip_sequence,
        "clip_weight": clip_weight,
        "reinforce": reinforce,
    }
)
