"""``group_advantage`` and ``gae`` on the CPU, in float64 whatever comes in."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.advantage import KINDS, TIE


def group_advantage_cpp(rewards: Tensor, groups: Tensor, kind: str) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.advantage.group_advantage`."""
    rewards, groups = rewards.double().contiguous(), groups.contiguous()
    order = torch.empty(2 * len(rewards), dtype=torch.int64)
    out = torch.empty(len(rewards))
    _C.group_advantage(
        rewards.data_ptr(), groups.data_ptr(), order.data_ptr(), out.data_ptr(), len(rewards), TIE,
        KINDS.index(kind),
    )  # fmt: skip
    return out


def gae_cpp(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.advantage.gae`."""
    rewards, values = rewards.double().contiguous(), values.double().contiguous()
    offsets, out = offsets.contiguous(), torch.empty(len(rewards))
    last = None if bootstrap is None else bootstrap.double().contiguous()
    _C.gae(
        rewards.data_ptr(), values.data_ptr(), offsets.data_ptr(), 0 if last is None else last.data_ptr(),
        out.data_ptr(), len(rewards), len(offsets) - 1, gamma, lam,
    )  # fmt: skip
    return out
