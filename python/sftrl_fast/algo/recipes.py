"""The table of policy-gradient algorithms. A new algorithm is a new row here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sftrl_fast.algo.advantages import ADVANTAGES
from sftrl_fast.algo.demonstrations import MIXINGS
from sftrl_fast.algo.kl import KLS
from sftrl_fast.algo.reductions import REDUCTIONS
from sftrl_fast.algo.surrogates import SURROGATES, PolicyTokens
from sftrl_fast.config import RLConfig
from sftrl_fast.core import UserError

CRITIC = {"gae"}
"""Advantages that read a critic's values; the others compare episodes with each other."""


def _known(key: str, value: str, table: Collection[str]) -> None:
    if value not in table:
        raise UserError(f"{key} is {value!r}; needed: one of {', '.join(table)}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Advantage x surrogate x reduction x KL, and demonstrations for hybrids, each by its name in its own table."""

    advantage: str
    surrogate: str
    reduction: str
    kl: str
    own: Mapping[str, float | int] = field(default_factory=dict)
    """What unset keys of ``rl`` mean here; a key of :data:`OWN` that is missing has no use in this row."""
    demonstrations: str = "none"

    def __post_init__(self) -> None:
        _known("advantage", self.advantage, ADVANTAGES)
        _known("surrogate", self.surrogate, SURROGATES)
        _known("reduction", self.reduction, REDUCTIONS)
        _known("kl", self.kl, KLS)
        _known("demonstrations", self.demonstrations, MIXINGS)

    @property
    def weighs(self) -> bool:
        """True if the surrogate weighs a token by its probability now over that when it was drawn."""
        return self.surrogate != "reinforce"

    @property
    def critic(self) -> bool:
        """True if a value head is trained beside the policy."""
        return self.advantage in CRITIC


def _own(clip: tuple[float, float] | None = None, **more: float | int) -> Mapping[str, float | int]:
    bounds = {} if clip is None else {"clip_low": clip[0], "clip_high": clip[1]}
    return MappingProxyType({"epochs": 1, "overlong": 0.0, "resample": 0, **bounds, **more})


OWN = (
    *("clip_low", "clip_high", "epochs", "overlong", "resample", "gamma", "lam", "value"),
    *("demonstrations", "mu", "mu_end", "mu_steps"),
)
"""Keys of ``rl`` whose default is the recipe's."""

# Sources: ppo, arXiv 2501.17161 (Chu et al.) and its code; grpo, arXiv 2402.03300, eq. 3; dr_grpo, arXiv 2503.20783,
# section 3.2; dapo, arXiv 2503.14476 (its buffer is a fifth of the longest answer); gdpo, arXiv 2601.05242, on GRPO;
# gspo, arXiv 2507.18071; rloo, arXiv 2402.14740, 3.2; reinforce_pp, arXiv 2501.03262; cispo, arXiv 2506.13585, with the
# upper bound 5 of arXiv 2510.13786. Hybrids: luffy, arXiv 2504.14945, on Dr. GRPO; chord and chord_phi, arXiv
# 2508.11408, on GRPO, mu falling or fixed.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "ppo": Recipe(
            "gae", "clip_turn", "turn_mean", "none",
            _own((0.1, 0.1), epochs=4, gamma=0.9, lam=0.95, value=0.5),
        ),
        "grpo": Recipe("group_mean_std", "clip", "sequence_mean", "k3", _own((0.2, 0.2))),
        "dr_grpo": Recipe("group_mean", "clip", "constant", "none", _own((0.2, 0.2))),
        "dapo": Recipe(
            "group_mean_std", "clip", "token_mean", "none", _own((0.2, 0.28), overlong=0.2, resample=3)
        ),
        "gdpo": Recipe("decoupled", "clip", "sequence_mean", "k3", _own((0.2, 0.2))),
        "gspo": Recipe("group_mean_std", "clip_sequence", "sequence_mean", "none", _own((3e-4, 4e-4))),
        "rloo": Recipe("leave_one_out", "reinforce", "sequence_sum", "none", _own()),
        "reinforce_pp": Recipe("batch_mean_std", "clip", "token_mean", "k2", _own((0.2, 0.2))),
        "cispo": Recipe("group_mean_std", "clip_weight", "token_mean", "none", _own((1.0, 4.0))),
        "luffy": Recipe(
            "group_mean", "clip", "constant", "none", _own((0.2, 0.2), demonstrations=1), "shaped"
        ),
        "chord": Recipe(
            "group_mean_std", "clip", "sequence_mean", "none",
            _own((0.2, 0.2), demonstrations=1, mu=0.9, mu_end=0.05, mu_steps=200), "likelihood",
        ),
        "chord_phi": Recipe(
            "group_mean_std", "clip", "sequence_mean", "none",
            _own((0.2, 0.2), demonstrations=1, mu=0.1, mu_end=0.1, mu_steps=0), "undecided",
        ),
    }
)  # fmt: skip


def recipe(settings: RLConfig) -> Recipe:
    """The row that ``rl.recipe`` names, with ``rl.kl_estimator`` in place of its own if that is set.

    Raises :class:`UserError` that lists the names.
    """
    _known("rl.recipe", settings.recipe, RECIPES)
    row = RECIPES[settings.recipe]
    return row if settings.kl_estimator is None else replace(row, kl=settings.kl_estimator)


def resolved(settings: RLConfig) -> RLConfig:
    """``settings`` with the recipe's own values where keys of :data:`OWN` are unset; resolving again changes nothing.

    Raises :class:`UserError` for an unknown recipe, a key that is set and has no use in it, a penalty without an
    estimator, groups too small to compare, a correction of log-probabilities that are not computed, and overlap that
    nothing corrects for.
    """
    row, name = recipe(settings), settings.recipe
    changes: dict[str, Any] = {}
    for key in OWN:
        given = getattr(settings, key)
        if given is None:
            changes[key] = row.own.get(key)
        elif key not in row.own:
            raise UserError(f"rl.{key}={given}: the recipe {name!r} has no use for it; leave it unset")
    if settings.value_lr is not None and not row.critic:
        raise UserError(
            f"rl.value_lr={settings.value_lr}: the recipe {name!r} has no value head; leave it unset"
        )
    if settings.kl and row.kl == "none":
        raise UserError(
            f"rl.kl={settings.kl}: the recipe {name!r} has no KL term; use 0, or set rl.kl_estimator to k1, k2 or k3"
        )
    if settings.group < 2 and not row.critic and row.advantage != "batch_mean_std":
        raise UserError(
            f"rl.group={settings.group}: the recipe {name!r} compares the episodes of an item; use 2 or more"
        )
    if row.advantage == "decoupled" and not settings.reward_parts:
        raise UserError(
            f"rl.reward_parts is empty: the recipe {name!r} compares parts of the reward each for itself; name them, "
            "such as rl.reward_parts.outcome=1 and rl.reward_parts.right=1"
        )
    if settings.tis and settings.old_logprobs == "engine":
        raise UserError(
            f"rl.tis={settings.tis} weighs the trainer's log-probabilities against the engine's; it needs "
            "rl.old_logprobs = 'trainer'"
        )
    if settings.overlap and not settings.tis and not (row.weighs and settings.old_logprobs == "engine"):
        raise UserError(
            f"rl.overlap=true: the recipe {name!r} with rl.old_logprobs={settings.old_logprobs!r} does not correct for "
            "answers of older weights; set rl.tis, such as 2, with rl.old_logprobs = 'trainer'"
        )
    return settings.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of a micro-batch and the facts a log wants about its T tokens."""

    loss: Tensor
    """Scalar: sum over tokens of weight x (correction x surrogate + kl_coef x kl - entropy_coef x entropy), of a
    demonstrated token weight x its own loss."""
    ratio: Tensor
    """``[T]``, detached."""
    clipped: Tensor
    """bool ``[T]``."""
    kl: Tensor | None
    """``[T]``, detached; None without a penalty."""


def policy_loss(
    row: Recipe,
    tokens: PolicyTokens,
    weight: Tensor,
    settings: RLConfig,
    *,
    ref_logp: Tensor | None = None,
    entropy: Tensor | None = None,
    correction: Tensor | None = None,
) -> LossTerms:
    """The loss of ``row`` on T answer tokens of whole rows; all tensors are ``[T]``.

    ``weight`` comes from :func:`sftrl_fast.algo.reductions.token_weights` of the whole batch, repeated for each token
    of a turn, so losses of micro-batches add up. ``settings`` are :func:`resolved`. ``rl.kl`` 0 switches the penalty
    off whatever the row says; otherwise a row with a penalty needs ``ref_logp``, as ``rl.entropy`` above 0 needs
    ``entropy``; their lack raises :class:`UserError`. ``correction`` weighs the surrogate alone. Demonstrated tokens
    have the loss of the row's :class:`~sftrl_fast.algo.demonstrations.Mixing` and nothing else: the estimates of the
    divergence are of the policy's own samples.
    """
    low, high = settings.clip_low or 0.0, settings.clip_high or 0.0
    terms = SURROGATES[row.surrogate](tokens, low, high)
    each = terms.loss if correction is None else correction * terms.loss
    kl = None
    if settings.kl and (estimator := KLS[row.kl]):
        if ref_logp is None:
            raise UserError(
                f"ref_logp is None; kl={row.kl!r} with rl.kl={settings.kl} needs the reference's log-probs"
            )
        kl = estimator(tokens.logp, ref_logp)
        each = each + settings.kl * kl
    if settings.entropy:
        if entropy is None:
            raise UserError(f"entropy is None; rl.entropy={settings.entropy} needs it")
        each = each - settings.entropy * entropy
    if tokens.demonstrated is not None and (mixing := MIXINGS[row.demonstrations]):
        each = torch.where(tokens.demonstrated, mixing.loss(tokens), each)
    return LossTerms((weight * each).sum(), terms.ratio, terms.clipped, None if kl is None else kl.detach())


def truncated_importance(old_logp: Tensor, sampled_logp: Tensor, cap: float) -> Tensor:
    """min(p_trainer / p_engine, cap) of each token, ``[T]``: corrects for an engine whose probabilities are not the
    trainer's on the same weights (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training",
    2025)."""
    return (old_logp - sampled_logp).exp().clamp(max=cap)


def value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """(V - target)^2 / 2 of each turn, ``[N]``."""
    return (values - targets).square() / 2
