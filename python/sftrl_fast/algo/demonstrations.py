"""What demonstrated tokens are worth beside sampled ones: the hybrids of SFT and RL as rows of one table.

A demonstration is an answer that the policy did not draw. Its ``old_logp`` is 0: whoever wrote it is taken to have
written nothing else, so that probability now over probability then is the policy's own probability p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from sftrl_fast.algo.reductions import token_weights
from sftrl_fast.algo.surrogates import PolicyTokens
from sftrl_fast.config import RLConfig

SHAPING = 0.1
"""Gamma of LUFFY's f."""


def shaped(tokens: PolicyTokens) -> Tensor:
    """-f(p) A with f(p) = p / (p + 0.1): in the gradient a token of small p weighs more than with p itself (LUFFY,
    arXiv 2504.14945, section 3.2)."""
    p = tokens.logp.exp()
    return -p / (p + SHAPING) * tokens.advantage


def likelihood(tokens: PolicyTokens) -> Tensor:
    """-A logp, the cross-entropy at advantage 1."""
    return -tokens.advantage * tokens.logp


def undecided(tokens: PolicyTokens) -> Tensor:
    """-sg(p (1 - p)) A logp: neither what the policy knows nor what it would never say is pressed on it (CHORD-phi,
    arXiv 2508.11408)."""
    p = tokens.logp.detach().exp()
    return -p * (1 - p) * tokens.advantage * tokens.logp


@dataclass(frozen=True, slots=True)
class Mixing:
    """How demonstrations enter an update."""

    loss: Callable[[PolicyTokens], Tensor]
    """Of each demonstrated token, ``[T]``, in place of the surrogate's."""
    compared: bool
    """True: a demonstration is one more episode of its item's group, with its verified reward. False: it is a batch of
    its own beside the others, of advantage 1, and ``rl.mu`` says what that batch weighs."""


MIXINGS: Mapping[str, Mixing | None] = MappingProxyType(
    {
        "none": None,
        "shaped": Mixing(shaped, compared=True),
        "likelihood": Mixing(likelihood, compared=False),
        "undecided": Mixing(undecided, compared=False),
    }
)
"""Name in a recipe -> what becomes of demonstrations; None shows none."""


def mixed_weights(
    reduction: str, turns: Tensor, row: Tensor, demonstrated: Tensor, mu: float | None, *, max_length: int
) -> Tensor:
    """(1 - mu) x the reduction's weights of sampled turns, and mu / tokens for each demonstrated one, float32 ``[N]``.

    ``demonstrated`` is bool ``[N]``; the rest as in :func:`~sftrl_fast.algo.reductions.token_weights`, which weighs
    all turns alike if ``mu`` is None.
    """
    if mu is None:
        return token_weights(reduction, turns, row, max_length=max_length)
    sampled = token_weights(reduction, turns.masked_fill(demonstrated, 0), row, max_length=max_length)
    shown = token_weights("token_mean", turns.masked_fill(~demonstrated, 0), row, max_length=max_length)
    return (1 - mu) * sampled + mu * shown


def share(settings: RLConfig, step: int) -> float | None:
    """mu of update ``step``: from ``rl.mu`` to ``rl.mu_end`` over ``rl.mu_steps`` updates along half a cosine (CHORD).

    None where demonstrations are no batch of their own. ``settings`` are resolved.
    """
    if settings.mu is None or settings.mu_end is None:
        return None
    done = min(1.0, step / settings.mu_steps) if settings.mu_steps else 1.0
    return settings.mu_end + (settings.mu - settings.mu_end) * 0.5 * (1 + math.cos(math.pi * done))
