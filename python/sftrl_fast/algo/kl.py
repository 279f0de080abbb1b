"""Penalties that hold the policy near a reference: an estimate of KL(policy || reference) for each token.

With d = ref_logp - logp on the policy's own samples (Schulman, "Approximating KL divergence", 2020). All are ``[T]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """-d, unbiased, with the gradient of :func:`k2`, which is unbiased for the divergence's; that of -d itself has
    mean zero whatever the policy, and would hold nothing near anything."""
    square = k2(logp, ref_logp)
    return square - square.detach() + (logp - ref_logp).detach()


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """d^2 / 2: biased, never negative; its gradient is unbiased for the divergence's."""
    return (ref_logp - logp).square() / 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """exp(d) - d - 1: unbiased, never negative (GRPO, arXiv 2402.03300, eq. 4)."""
    d = ref_logp - logp
    return d.exp() - d - 1


KLS: Mapping[str, Callable[[Tensor, Tensor], Tensor] | None] = MappingProxyType(
    {"none": None, "k1": k1, "k2": k2, "k3": k3}
)
"""Name in a recipe -> estimator; None needs no reference model."""
