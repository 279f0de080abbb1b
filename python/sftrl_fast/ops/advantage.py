"""Advantages over ragged groups and ragged episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve

KINDS = ("mean", "mean_std", "leave_one_out")
TIE = 1e-6
"""A group counts as tied if its rewards spread by no more than this part of the largest magnitude among them:
the same rewards summed in another order differ by rounding, and dividing by that makes noise of size one."""


def group_advantage(rewards: Tensor, groups: Tensor, *, kind: str, impl: str | None = None) -> Tensor:
    """Each reward compared with its own group; float32 ``[N]``.

    ``rewards`` is floating ``[N]``, ``groups`` int64 ``[N]``: members share an id, ids need not be sorted,
    dense or adjacent, and groups may differ in size. With n members, mean m and sample deviation s (n - 1):

    - ``mean``: r - m (Dr. GRPO, arXiv 2503.20783)
    - ``mean_std``: (r - m) / s (GRPO, arXiv 2402.03300, eq. 3; s as TRL and verl take it, but no epsilon)
    - ``leave_one_out``: r minus the mean of the others = (r - m) n / (n - 1) (RLOO, arXiv 2402.14740)

    A tied group (see :data:`TIE`) and a lone member, which has nothing to be compared with, get 0.
    Raises :class:`UserError` for an unknown kind, wrong shapes or types, and rewards that are not finite.
    """
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}; needed: one of {', '.join(KINDS)}")
    if rewards.dim() != 1 or not rewards.is_floating_point():
        raise UserError(f"rewards is {rewards.dtype} {list(rewards.shape)}; needed: floating [N]")
    if groups.shape != rewards.shape or groups.dtype != torch.int64 or groups.device != rewards.device:
        came = f"{groups.dtype} {list(groups.shape)} on {groups.device}"
        raise UserError(f"groups is {came}; needed: torch.int64 {list(rewards.shape)} on {rewards.device}")
    _check_finite("rewards", rewards)
    return resolve("group_advantage", impl, rewards)(rewards, groups, kind)


def group_advantage_torch(rewards: Tensor, groups: Tensor, kind: str) -> Tensor:
    """The plain torch implementation, in float64; arguments as checked by :func:`group_advantage`."""
    r = rewards.double()
    ids, member = torch.unique(groups, return_inverse=True)
    size = torch.bincount(member, minlength=len(ids)).double()
    mean = r.new_zeros(len(ids)).index_add_(0, member, r) / size
    high = r.new_full((len(ids),), float("-inf")).scatter_reduce_(0, member, r, "amax")
    low = r.new_full((len(ids),), float("inf")).scatter_reduce_(0, member, r, "amin")
    tied = high - low <= TIE * torch.maximum(high.abs(), low.abs())
    centred = torch.where(tied[member], 0, r - mean[member])
    others = (size - 1).clamp_min(1)  # a lone member is tied with itself: its numerator is 0 already
    if kind == "mean_std":
        variance = r.new_zeros(len(ids)).index_add_(0, member, centred.square()) / others
        centred = torch.where(tied[member], 0, centred / variance.sqrt()[member])
    elif kind == "leave_one_out":
        centred = centred * (size / others)[member]
    return centred.float()


def gae(
    rewards: Tensor,
    values: Tensor,
    offsets: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Generalised advantage estimates over ragged episodes (arXiv 1506.02438, eq. 16); float32 ``[N]``.

    ``rewards`` and ``values`` are floating ``[N]``, all episodes' steps one after another; episode e has the
    steps ``offsets[e]:offsets[e + 1]`` (int64 ``[E + 1]``, from 0 to N; empty episodes allowed). Backwards
    within an episode, A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}; after the last step A is 0 and V
    is ``bootstrap[e]`` (``[E]``; None means 0: the episode ended rather than was cut).

    Raises :class:`UserError` for wrong shapes or types, offsets that do not ascend from 0 to N, ``gamma`` or
    ``lam`` outside [0, 1], and values that are not finite.
    """
    if rewards.dim() != 1 or not rewards.is_floating_point() or values.shape != rewards.shape:
        raise UserError(
            f"rewards {list(rewards.shape)}, values {list(values.shape)}; needed: floating [N] both"
        )
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or len(offsets) == 0:
        raise UserError(f"offsets is {offsets.dtype} {list(offsets.shape)}; needed: torch.int64 [E + 1]")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(rewards) or bool((offsets.diff() < 0).any()):
        raise UserError(f"offsets {offsets.tolist()[:8]}; needed: ascending from 0 to N = {len(rewards)}")
    if bootstrap is not None and bootstrap.shape != (len(offsets) - 1,):
        raise UserError(f"bootstrap has shape {list(bootstrap.shape)}; needed: [{len(offsets) - 1}]")
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise UserError(f"{name} is {number}; needed: a number in [0, 1]")
    _check_finite("rewards", rewards)
    _check_finite("values", values)
    return resolve("gae", impl, rewards)(rewards, values, offsets, gamma, lam, bootstrap)


def gae_torch(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """The plain torch implementation: one step back in every episode at a time."""
    first, last = offsets[:-1], offsets[1:] - 1
    episodes = len(first)
    advantages = rewards.new_zeros(len(rewards), dtype=torch.float64)
    running = advantages.new_zeros(episodes)
    following = advantages.new_zeros(episodes) if bootstrap is None else bootstrap.double()
    longest = int((last - first).max()) + 1 if episodes else 0
    for back in range(longest):
        alive = last - back >= first
        at = (last - back)[alive]
        value = values[at].double()
        running[alive] = (
            rewards[at].double() + gamma * following[alive] - value + gamma * lam * running[alive]
        )
        following = following.masked_scatter(alive, value)
        advantages[at] = running[alive]
    return advantages.float()


def _check_finite(name: str, numbers: Tensor) -> None:
    bad = ~torch.isfinite(numbers)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise UserError(f"{name}[{row}] is {float(numbers[row])}; needed: finite numbers")
