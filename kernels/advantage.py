"""``group_advantage`` and ``gae`` on the GPU.

Groups are found by comparing every reward's id with every other's: N^2 comparisons, but one launch, no sort and no
atomics; for the thousands of answers of an update that is less than what a sort's launches take. Deviations are
summed from the reward itself, so that a large common part of all rewards costs no digits. GAE is a linear recurrence,
so an associative scan: a program an episode, blocks of steps from the last to the first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work, padded

OWN, OTHERS = 16, 128
"""Rewards of a program, and those it compares them with at a time."""
STEPS = 128
"""Steps of an episode scanned at a time."""
GROUP_WARPS, GAE_WARPS = 4, 1
TIE = tl.constexpr(1e-6)
"""``TIE`` of ops/advantage.py, which kernels may not import; a test holds the two together."""


@triton.jit
def _group_advantage(
    rewards, groups, out, N, KIND: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr
):  # fmt: skip
    """Advantages of OWN rewards; KIND is the op's ``kind``."""
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    each = tl.arange(0, OTHERS)
    reward = tl.load(rewards + own, mask=own < N, other=0.0).to(tl.float32)
    group = tl.load(groups + own, mask=own < N, other=0)
    size = tl.zeros((OWN,), tl.float32)
    ahead = tl.zeros((OWN,), tl.float32)
    high, low = reward, reward
    for start in range(0, N, OTHERS):
        other = tl.load(rewards + start + each, mask=start + each < N, other=0.0).to(tl.float32)[None, :]
        its = tl.load(groups + start + each, mask=start + each < N, other=0)
        member = (its[None, :] == group[:, None]) & (start + each < N)[None, :]
        size += tl.sum(member.to(tl.float32), 1)
        ahead += tl.sum(tl.where(member, other - reward[:, None], 0.0), 1)
        high = tl.maximum(high, tl.max(tl.where(member, other, reward[:, None]), 1))
        low = tl.minimum(low, tl.min(tl.where(member, other, reward[:, None]), 1))
    ahead /= tl.maximum(size, 1.0)  # of the group's mean over the reward
    result = -ahead
    rest = tl.maximum(size - 1, 1.0)  # a lone member is tied with itself and gets 0
    if KIND == "mean_std":
        # In parts of the group's spread, whose square could leave float32.
        spread = tl.where(high > low, high - low, 1.0)
        variance = tl.zeros((OWN,), tl.float32)
        for start in range(0, N, OTHERS):
            other = tl.load(rewards + start + each, mask=start + each < N, other=0.0).to(tl.float32)[None, :]
            its = tl.load(groups + start + each, mask=start + each < N, other=0)
            member = (its[None, :] == group[:, None]) & (start + each < N)[None, :]
            off = (other - reward[:, None] - ahead[:, None]) / spread[:, None]
            variance += tl.sum(tl.where(member, off * off, 0.0), 1)
        result = result / spread / tl.sqrt_rn(tl.maximum(variance / rest, 1e-30))
    elif KIND == "leave_one_out":
        result *= size / rest
    tied = high - low <= TIE * tl.maximum(tl.abs(high), tl.abs(low))
    tl.store(out + own, tl.where(tied, 0.0, result), mask=own < N)


@triton.jit
def _after(factor, total, its_factor, its_total):
    """Two stretches of A = total + factor * (A that follows), the second one nearer to the start."""
    return its_factor * factor, its_total + its_factor * total


@triton.jit
def _gae(
    rewards, values, offsets, bootstrap, out, gamma, lam, BOOTSTRAP: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """One episode."""
    episode = tl.program_id(0)
    first, end = tl.load(offsets + episode), tl.load(offsets + episode + 1)
    following = tl.load(bootstrap + episode).to(tl.float32) if BOOTSTRAP else 0.0
    carried = tl.zeros((1,), tl.float32)
    for block in range(tl.cdiv(end - first, STEPS)):
        start = end - (block + 1) * STEPS
        at = start + tl.arange(0, STEPS)
        live = at >= first
        reward = tl.load(rewards + at, mask=live, other=0.0).to(tl.float32)
        value = tl.load(values + at, mask=live, other=0.0).to(tl.float32)
        after = tl.load(values + at + 1, mask=live & (at + 1 < end), other=0.0).to(tl.float32)
        after = tl.where(at + 1 < end, after, following)
        error = tl.where(live, reward + gamma * after - value, 0.0)
        decay = tl.full((STEPS,), 1.0, tl.float32) * gamma * lam
        factor, total = tl.associative_scan((decay, error), 0, _after, reverse=True)
        advantage = total + factor * carried
        tl.store(out + at, advantage, mask=live)
        carried = tl.sum(tl.where(at == start, advantage, 0.0), 0)[None]


def group_advantage_triton(rewards: Tensor, groups: Tensor, kind: str) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.advantage.group_advantage`."""
    rewards, groups = rewards.contiguous(), groups.contiguous()
    out = torch.empty(len(rewards), dtype=torch.float32, device=rewards.device)
    if len(rewards):
        _group_advantage[(triton.cdiv(len(rewards), OWN),)](
            rewards, groups, out, len(rewards), KIND=kind, OWN=OWN, OTHERS=OTHERS,
            num_warps=GROUP_WARPS, **FUSION,
        )  # fmt: skip
    return out


def gae_triton(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.advantage.gae`."""
    rewards, values, offsets = rewards.contiguous(), values.contiguous(), offsets.contiguous()
    out = torch.empty(len(rewards), dtype=torch.float32, device=rewards.device)
    if len(rewards):
        last = values if bootstrap is None else bootstrap.contiguous()
        _gae[(len(offsets) - 1,)](
            rewards, values, offsets, last, out, gamma, lam, BOOTSTRAP=bootstrap is not None, STEPS=STEPS,
            num_warps=GAE_WARPS, **FUSION,
        )  # fmt: skip
    return out


REGISTER_BUDGET = {"group_advantage": 168, "gae": 64}


def _group_case(dtype: torch.dtype, kind: str) -> CompileCase:
    signature = {"rewards": f"*{TYPE_NAMES[dtype]}", "groups": "*i64", "out": "*fp32", "N": "i32"}
    constexprs: dict[str, Any] = {"KIND": kind, "OWN": OWN, "OTHERS": OTHERS}
    return CompileCase(
        f"group_advantage/{kind}", TYPE_NAMES[dtype], _group_advantage, signature, constexprs, GROUP_WARPS, 3,
        REGISTER_BUDGET["group_advantage"],
    )  # fmt: skip


def _gae_case(dtype: torch.dtype, bootstrap: bool) -> CompileCase:
    signature: dict[str, str] = dict.fromkeys(("rewards", "values", "bootstrap"), f"*{TYPE_NAMES[dtype]}")
    signature |= {"offsets": "*i64", "out": "*fp32", "gamma": "fp32", "lam": "fp32"}
    return CompileCase(
        f"gae{'+bootstrap' if bootstrap else ''}", TYPE_NAMES[dtype], _gae, signature,
        {"BOOTSTRAP": bootstrap, "STEPS": STEPS}, GAE_WARPS, 3, REGISTER_BUDGET["gae"],
    )  # fmt: skip


COMPILE_CASES = [
    *(_group_case(torch.float32, kind) for kind in ("mean", "mean_std", "leave_one_out")),
    *(
        _gae_case(dtype, bootstrap)
        for dtype in (torch.float32, torch.bfloat16)
        for bootstrap in (False, True)
    ),
]


def group_work(rewards: int) -> Work:
    """Of ``mean_std``: two walks over all rewards and ids for each block of own ones."""
    blocks = padded(rewards, OWN) / OWN
    return Work(
        "group_advantage/mean_std", f"N={rewards}", rewards * (4 + 8 + 4),
        rewards * (4 + 8 + 4) + 2 * blocks * rewards * 12, 6 * rewards,
        12 * padded(rewards, OWN) * padded(rewards, OTHERS),
    )  # fmt: skip


def gae_work(episodes: int, length: int) -> Work:
    steps = episodes * length
    return Work(
        "gae", f"E={episodes} L={length}", steps * 12 + episodes * 16, steps * 16 + episodes * 16, 5 * steps,
        (4 + 3 * 7) * episodes * padded(length, STEPS),
    )  # fmt: skip


WORK = [group_work(512), group_work(4096), gae_work(512, 5), gae_work(512, 300)]
