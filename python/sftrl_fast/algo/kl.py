"""Penalties that hold the policy near a reference: an estimate of KL(policy || reference) for each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logp - logp, ``[T]``: unbiased on the policy's own samples, never negative
    (Schulman, "Approximating KL divergence", 2020; GRPO, arXiv 2402.03300, eq. 4)."""
    d = ref_logp - logp
    return d.exp() - d - 1


KLS: Mapping[str, Callable[[Tensor, Tensor], Tensor] | None] = MappingProxyType({"none": None, "k3": k3})
"""Name in a recipe -> estimator; None needs no reference model."""
