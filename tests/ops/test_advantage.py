"""Every implementation of the group advantages and of GAE against plain Python, and the kernels' levels in float64."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.advantage import KINDS, gae, gae_torch, group_advantage, group_advantage_torch
from sftrl_fast.ops.dispatch import availability

GROUP_IMPLS = [row.impl for row in availability("group_advantage", torch.empty(0)) if row.available]
WIDE = torch.empty(0, dtype=torch.float64)
WIDE_GROUP_IMPLS = [row.impl for row in availability("group_advantage", WIDE) if row.available]
GAE_IMPLS = [row.impl for row in availability("gae", torch.empty(0)) if row.available]


def by_hand(rewards: list[float], groups: list[int], kind: str) -> list[float]:
    out = []
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        others = [r for j, (r, g) in enumerate(zip(rewards, groups, strict=True)) if g == group and j != i]
        if len(set(members)) == 1:
            out.append(0.0)
        elif kind == "leave_one_out":
            out.append(reward - statistics.fmean(others))
        else:
            scale = statistics.stdev(members) if kind == "mean_std" else 1.0
            out.append((reward - statistics.fmean(members)) / scale)
    return out


@pytest.mark.parametrize("impl", GROUP_IMPLS)
@pytest.mark.parametrize("kind", KINDS)
@given(members=st.lists(st.tuples(st.sampled_from([5.0, -1.0, -2.0, -3.0]), st.integers(-2, 3)), max_size=24))
@settings(max_examples=40, deadline=None)
def test_ragged_groups_agree_with_the_definition(
    impl: str, kind: str, members: list[tuple[float, int]]
) -> None:
    rewards, groups = [m[0] for m in members], [m[1] for m in members]
    got = group_advantage(
        torch.tensor(rewards), torch.tensor(groups, dtype=torch.int64), kind=kind, impl=impl
    )
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(by_hand(rewards, groups, kind), abs=1e-5)


@pytest.mark.parametrize("impl", WIDE_GROUP_IMPLS)
def test_rounding_noise_in_tied_rewards_is_no_advantage(impl: str) -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3, 1e6, 1e6], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    groups = torch.tensor([0, 0, 1, 1])
    for kind in KINDS:
        assert group_advantage(rewards, groups, kind=kind, impl=impl).tolist() == [0.0] * 4


@pytest.mark.parametrize("impl", GROUP_IMPLS)
def test_normalised_advantages_do_not_depend_on_the_scale_of_rewards(impl: str) -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 0.5])
    groups = torch.zeros(4, dtype=torch.int64)
    base = group_advantage(rewards, groups, kind="mean_std", impl=impl)
    for scale in (1e-12, 1e12):
        scaled = group_advantage(rewards * scale, groups, kind="mean_std", impl=impl)
        assert torch.allclose(scaled, base, rtol=1e-5)


def ragged_groups(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rewards in groups of 1 to about 20, one of them tied, ids of both signs in no order."""
    g = torch.Generator().manual_seed(count)
    groups = torch.randint(-count // 8 - 1, count // 8 + 1, (count,), generator=g)
    rewards = torch.randn(count, generator=g).mul_(3).to(dtype)
    return torch.where(groups == 0, rewards.new_tensor(1.5), rewards), groups


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("level")
def test_group_advantage_is_float64s_at_every_level(dtype: torch.dtype) -> None:
    for count in (0, 1, 2, 17, 1000):
        rewards, groups = ragged_groups(count, dtype)
        for kind in KINDS:
            for order in (groups, groups.sort().values, groups * 2**50):
                exact = group_advantage_torch(rewards, order, kind)
                got = group_advantage(rewards, order, kind=kind, impl="cpp")
                # Two sums in float64 end up in the same float32 or its neighbour.
                assert torch.allclose(got, exact, rtol=2e-7, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bootstrap", [False, True])
@pytest.mark.usefixtures("level")
def test_gae_is_float64s_at_every_level(dtype: torch.dtype, with_bootstrap: bool) -> None:
    g = torch.Generator().manual_seed(0)
    for lengths in ([], [0], [0, 0, 3, 0], [1, 0, 300, 7], [5] * 5000):
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        rewards, values = (torch.randn(sum(lengths), generator=g).to(dtype) for _ in range(2))
        bootstrap = torch.randn(len(lengths), generator=g).to(dtype) if with_bootstrap else None
        exact = gae_torch(rewards, values, offsets, 0.99, 0.95, bootstrap)
        got = gae(rewards, values, offsets, gamma=0.99, lam=0.95, bootstrap=bootstrap, impl="cpp")
        assert torch.allclose(got, exact, rtol=2e-7, atol=1e-13)


def test_outputs_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda size, **kind: empty(size, **kind).fill_(-7 if kind else float("nan"))
    )
    rewards, groups = ragged_groups(50, torch.float32)
    for kind in KINDS:
        assert not group_advantage(rewards, groups, kind=kind, impl="cpp").isnan().any()
    offsets = torch.tensor([0, 0, 30, 50, 50])
    assert not gae(rewards, rewards, offsets, gamma=1.0, lam=0.5, impl="cpp").isnan().any()


def test_strided_input_is_read_rightly() -> None:
    rewards, groups = ragged_groups(60, torch.float64)
    got = group_advantage(rewards[::2], groups[::2], kind="mean", impl="cpp")
    assert torch.equal(
        got, group_advantage(rewards[::2].clone(), groups[::2].clone(), kind="mean", impl="cpp")
    )
    offsets = torch.tensor([0, 9, 4, 9, 30, 9])[::2]
    got = gae(rewards[::2], rewards[1::2], offsets, gamma=0.9, lam=0.9, impl="cpp")
    other = gae(rewards[::2].clone(), rewards[1::2].clone(), offsets.clone(), gamma=0.9, lam=0.9, impl="cpp")
    assert torch.equal(got, other)


def test_bad_group_input_raises_and_names_the_argument() -> None:
    rewards, groups = torch.ones(3), torch.tensor([0, 0, 1])
    with pytest.raises(UserError, match="kind is 'median'"):
        group_advantage(rewards, groups, kind="median")
    with pytest.raises(UserError, match=r"groups is torch\.int32"):
        group_advantage(rewards, groups.int(), kind="mean")
    with pytest.raises(UserError, match="groups"):
        group_advantage(rewards, groups[:2], kind="mean")
    with pytest.raises(UserError, match=r"rewards is torch\.int64"):
        group_advantage(groups, groups, kind="mean")
    with pytest.raises(UserError, match=r"rewards\[1\] is nan"):
        group_advantage(torch.tensor([0.0, float("nan"), 1.0]), groups, kind="mean")


def gae_by_hand(
    rewards: list[float], values: list[float], gamma: float, lam: float, bootstrap: float
) -> list[float]:
    """The definition: a discounted sum of one-step errors."""
    following = [*values, bootstrap][1:]
    errors = [r + gamma * n - v for r, v, n in zip(rewards, values, following, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))
    ]


numbers = st.floats(-5, 5, allow_nan=False, width=32)
episode = st.lists(st.tuples(numbers, numbers), max_size=6)


@pytest.mark.parametrize("impl", GAE_IMPLS)
@given(
    episodes=st.lists(st.tuples(episode, numbers), max_size=5),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_gae_agrees_with_the_sum_of_errors_in_every_episode(
    impl: str, episodes: list[tuple[list[tuple[float, float]], float]], gamma: float, lam: float
) -> None:
    steps = [step for e, _ in episodes for step in e]
    offsets = torch.tensor([0, *(len(e) for e, _ in episodes)]).cumsum(0)
    got = gae(
        torch.tensor([r for r, _ in steps]),
        torch.tensor([v for _, v in steps]),
        offsets,
        gamma=gamma,
        lam=lam,
        bootstrap=torch.tensor([b for _, b in episodes]),
        impl=impl,
    )
    expected = [
        x for e, b in episodes for x in gae_by_hand([r for r, _ in e], [v for _, v in e], gamma, lam, b)
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("impl", GAE_IMPLS)
def test_gae_of_a_finished_episode_by_hand(impl: str) -> None:
    # errors: 1 + 0.5*4 - 2 = 1 and -1 + 0 - 4 = -5; A_1 = -5, A_0 = 1 + 0.5*0.5*(-5) = -0.25
    got = gae(
        torch.tensor([1.0, -1.0]),
        torch.tensor([2.0, 4.0]),
        torch.tensor([0, 2]),
        gamma=0.5,
        lam=0.5,
        impl=impl,
    )
    assert got.tolist() == [-0.25, -5.0]


def test_bad_gae_input_raises_and_names_the_argument() -> None:
    ones = torch.ones(3)
    for offsets in ([0, 2], [1, 3], [0, 3, 2, 3], []):
        with pytest.raises(UserError, match="offsets"):
            gae(ones, ones, torch.tensor(offsets, dtype=torch.int64), gamma=1.0, lam=1.0)
    good = torch.tensor([0, 3])
    with pytest.raises(UserError, match=r"gamma is 1\.5"):
        gae(ones, ones, good, gamma=1.5, lam=1.0)
    with pytest.raises(UserError, match="lam is nan"):
        gae(ones, ones, good, gamma=1.0, lam=float("nan"))
    with pytest.raises(UserError, match="values"):
        gae(ones, ones[:2], good, gamma=1.0, lam=1.0)
    with pytest.raises(UserError, match=r"values\[0\] is inf"):
        gae(ones, ones / 0, good, gamma=1.0, lam=1.0)
    with pytest.raises(UserError, match="bootstrap"):
        gae(ones, ones, good, gamma=1.0, lam=1.0, bootstrap=ones)
