"""From verified episodes to an advantage for each of their turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType

import torch
from torch import Tensor

from sftrl_fast.core import Episode, Group, UserError
from sftrl_fast.ops.advantage import gae as generalised
from sftrl_fast.ops.advantage import group_advantage


@dataclass(frozen=True, slots=True)
class Experience:
    """What an advantage may look at: N turns of E episodes, one after another."""

    rewards: Tensor
    """float64 ``[N]``, one a turn."""
    offsets: Tensor
    """int64 ``[E + 1]``: episode e has the turns ``offsets[e]:offsets[e + 1]``."""
    groups: Tensor
    """int64 ``[E]``: the group of each episode."""
    values: Tensor | None = None
    """What a critic expected before each turn, float ``[N]``."""
    gamma: float = 1.0
    lam: float = 1.0
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Where rewards are weighted sums: of what, each float64 ``[N]``."""
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def returns(self) -> Tensor:
        """The sum of each episode's rewards, float64 ``[E]``."""
        return self.summed(self.rewards)

    def summed(self, each: Tensor) -> Tensor:
        """The sum of an episode's turns, ``[E]``, of a number a turn, float64 ``[N]``."""
        return each.new_zeros(len(self.groups)).index_add_(0, self.episode, each)

    @property
    def episode(self) -> Tensor:
        """The episode of each turn, int64 ``[N]``."""
        return torch.repeat_interleave(self.offsets.diff())


@dataclass(frozen=True, slots=True)
class Advantages:
    """One number a turn; both float32 ``[N]``."""

    advantage: Tensor
    target: Tensor | None
    """What a critic should have expected; None for methods without one."""


Advantage = Callable[[Experience], Advantages]


def _compared(kind: str) -> Advantage:
    """The episode's return compared within its group, the same for each of its turns."""

    def advantage(experience: Experience) -> Advantages:
        each = group_advantage(experience.returns, experience.groups, kind=kind)
        return Advantages(each[experience.episode], None)

    return advantage


def batch_mean_std(experience: Experience) -> Advantages:
    """(R - mean) / deviation over all episodes of the batch (REINFORCE++, arXiv 2501.03262): no groups needed."""
    everyone = torch.zeros_like(experience.groups)
    each = group_advantage(experience.returns, everyone, kind="mean_std")
    return Advantages(each[experience.episode], None)


def decoupled(experience: Experience) -> Advantages:
    """Each part's return compared within its group by mean and deviation, their weighted sum by those of the batch
    (GDPO, arXiv 2601.05242): a part that spreads little teaches as much as one that spreads widely."""
    if not experience.parts:
        raise UserError("parts is empty; the advantage 'decoupled' needs rewards made of parts")
    total = experience.rewards.new_zeros(len(experience.groups))
    for name, part in experience.parts.items():
        compared = group_advantage(experience.summed(part), experience.groups, kind="mean_std")
        total += experience.weights[name] * compared
    everyone = torch.zeros_like(experience.groups)
    return Advantages(group_advantage(total, everyone, kind="mean_std")[experience.episode], None)


def gae(experience: Experience) -> Advantages:
    """Generalised advantage estimates over turns, then (A - mean) / deviation over the whole batch's turns.

    Turns are the steps of the decision process: the state is the dialogue so far, the action a whole answer. The
    critic's target is the estimate before it is normalised, plus the value (arXiv 1707.06347; 1506.02438, eq. 16).
    """
    if experience.values is None:
        raise UserError("values is None; the advantage 'gae' needs a critic's value for each turn")
    raw = generalised(
        experience.rewards,
        experience.values,
        experience.offsets,
        gamma=experience.gamma,
        lam=experience.lam,
    )
    one_group = torch.zeros(len(raw), dtype=torch.int64, device=raw.device)
    target = (raw.double() + experience.values.double()).float()
    return Advantages(group_advantage(raw, one_group, kind="mean_std"), target)


ADVANTAGES: Mapping[str, Advantage] = MappingProxyType(
    {
        "group_mean": _compared("mean"),
        "group_mean_std": _compared("mean_std"),
        "leave_one_out": _compared("leave_one_out"),
        "batch_mean_std": batch_mean_std,
        "decoupled": decoupled,
        "gae": gae,
    }
)
"""Name in a recipe -> function; ``gae`` alone reads values."""


def experience(
    groups: Sequence[Group],
    *,
    values: Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    overlong: int = 0,
    max_length: int = 1,
    weights: Mapping[str, float] | None = None,
) -> Experience:
    """The turns of ``groups`` in order, their rewards less :func:`overlong_penalty`; groups may differ in size.

    ``weights`` are those of the parts that :func:`~sftrl_fast.algo.rewards.weighed` made the rewards of.
    """
    episodes: list[Episode] = [episode for group in groups for episode in group.episodes]
    turns = [turn for episode in episodes for turn in episode.turns]
    rewards = [
        turn.verdict.reward - overlong_penalty(len(turn.answer_ids), overlong, max_length) for turn in turns
    ]
    sizes = torch.tensor([len(group.episodes) for group in groups], dtype=torch.int64)
    offsets = [0, *accumulate(len(episode.turns) for episode in episodes)]
    return Experience(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(offsets),
        torch.repeat_interleave(sizes),
        values,
        gamma,
        lam,
        {name: torch.tensor([turn.verdict.parts[name] for turn in turns]).double() for name in weights or {}},
        weights or {},
    )


def overlong_penalty(length: int, buffer: int, max_length: int) -> float:
    """0 up to ``max_length - buffer`` tokens, rising linearly to 1 at ``max_length``; DAPO, arXiv 2503.14476, eq. 13.

    ``buffer`` 0 is no penalty.
    """
    return max(0.0, 1 - (max_length - length) / buffer) if buffer else 0.0
