"""The table of policy-gradient algorithms. A new algorithm is a new row here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from sftrl_fast.algo.advantages import ADVANTAGES
from sftrl_fast.algo.kl import KLS
from sftrl_fast.algo.reductions import REDUCTIONS
from sftrl_fast.algo.surrogates import SURROGATES
from sftrl_fast.core import UserError


def _known(key: str, value: str, table: Collection[str]) -> None:
    if value not in table:
        raise UserError(f"{key} is {value!r}; needed: one of {', '.join(table)}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Advantage x surrogate x reduction x KL, each by its name in its own table."""

    advantage: str
    surrogate: str
    reduction: str
    kl: str

    def __post_init__(self) -> None:
        _known("advantage", self.advantage, ADVANTAGES)
        _known("surrogate", self.surrogate, SURROGATES)
        _known("reduction", self.reduction, REDUCTIONS)
        _known("kl", self.kl, KLS)


# Sources: grpo, arXiv 2402.03300, eq. 3; dr_grpo, arXiv 2503.20783, section 3.2; rloo, arXiv 2402.14740, 3.2.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "grpo": Recipe("group_mean_std", "clip", "sequence_mean", "k3"),
        "dr_grpo": Recipe("group_mean", "clip", "constant", "none"),
        "rloo": Recipe("leave_one_out", "reinforce", "sequence_sum", "none"),
    }
)


def recipe(name: str) -> Recipe:
    """The row of that name; raises :class:`UserError` that lists the names."""
    _known("algorithm", name, RECIPES)
    return RECIPES[name]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of a micro-batch and the facts a log wants about its T tokens."""

    loss: Tensor
    """Scalar: sum over tokens of weight x (surrogate + kl_coef x kl)."""
    ratio: Tensor
    """``[T]``, detached."""
    clipped: Tensor
    """bool ``[T]``."""
    kl: Tensor | None
    """``[T]``, detached; None without a penalty."""


def policy_loss(
    row: Recipe,
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
) -> LossTerms:
    """The loss of ``row`` on T answer tokens; all tensors are ``[T]``.

    ``weight`` comes from :func:`sftrl_fast.algo.reductions.token_weights` of the whole batch, repeated for
    each token of a row, so losses of micro-batches add up. ``kl_coef`` 0 switches the penalty off whatever
    the row says; otherwise a row with a penalty needs ``ref_logp``, and its lack raises :class:`UserError`.
    """
    terms = SURROGATES[row.surrogate](logp, old_logp, advantage, clip_low, clip_high)
    estimator = KLS[row.kl] if kl_coef else None
    if estimator is None:
        return LossTerms((weight * terms.loss).sum(), terms.ratio, terms.clipped, None)
    if ref_logp is None:
        raise UserError(
            f"ref_logp is None; kl={row.kl!r} with kl_coef={kl_coef} needs the reference's log-probs"
        )
    kl = estimator(logp, ref_logp)
    loss = (weight * (terms.loss + kl_coef * kl)).sum()
    return LossTerms(loss, terms.ratio, terms.clipped, kl.detach())
