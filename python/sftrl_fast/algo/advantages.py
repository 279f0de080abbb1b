"""From verified episodes to one advantage an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from sftrl_fast.core import Group, UserError
from sftrl_fast.ops.advantage import group_advantage

ADVANTAGES: Mapping[str, str] = MappingProxyType(
    {"group_mean": "mean", "group_mean_std": "mean_std", "leave_one_out": "leave_one_out"}
)
"""Name in a recipe -> ``kind`` of :func:`sftrl_fast.ops.advantage.group_advantage`."""


def episode_advantages(groups: Sequence[Group], name: str) -> list[list[float]]:
    """An advantage for each episode of each group, from the episodes' returns; groups may differ in size.

    Episodes of a group without variance get 0. The lists that come back are shaped as ``groups`` is, so that
    ``groups[i].episodes[j]`` goes with ``[i][j]``. Raises :class:`UserError` for a name not in
    :data:`ADVANTAGES`.
    """
    if name not in ADVANTAGES:
        raise UserError(f"advantage is {name!r}; needed: one of {', '.join(ADVANTAGES)}")
    sizes = [len(group.episodes) for group in groups]
    rewards = torch.tensor([e.reward for group in groups for e in group.episodes], dtype=torch.float64)
    member = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    flat = iter(group_advantage(rewards, member, kind=ADVANTAGES[name]).tolist())
    return [[next(flat) for _ in range(size)] for size in sizes]
