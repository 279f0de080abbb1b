"""Episodes in groups to an advantage for each turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sftrl_fast.algo.advantages import ADVANTAGES, Advantages, experience, overlong_penalty
from sftrl_fast.algo.rewards import weighed
from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict


def episode(*rewards: float, length: int = 1) -> Episode:
    """An episode whose turns earned these rewards, with answers of ``length`` tokens."""
    verdicts = [Verdict(reward, 0, False, "") for reward in rewards]
    turns = [Turn([1], [2] * length, [-0.5] * length, "x", True, verdict) for verdict in verdicts]
    return Episode(0, 0, turns)


def groups(*returns: list[float]) -> list[Group]:
    return [Group(i, [episode(reward) for reward in row]) for i, row in enumerate(returns)]


RAGGED = groups([5, -1, -1], [4, 0])


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # mean of (5, -1, -1) is 1, sample variance (16 + 4 + 4) / 2 = 12; the second group has mean 2, variance 8
        ("group_mean", [4, -2, -2, 2, -2]),
        ("group_mean_std", [4 / 12**0.5, -2 / 12**0.5, -2 / 12**0.5, 2 / 8**0.5, -2 / 8**0.5]),
        ("leave_one_out", [6, -3, -3, 4, -4]),
        # mean of all five is 1.4, the sample variance (3.6^2 + 2.4^2 + 2.4^2 + 2.6^2 + 1.4^2) / 4 = 8.3
        ("batch_mean_std", [x / 8.3**0.5 for x in (3.6, -2.4, -2.4, 2.6, -1.4)]),
    ],
)
def test_each_comparison_by_hand_on_ragged_groups(name: str, by_hand: list[float]) -> None:
    found = ADVANTAGES[name](experience(RAGGED))
    assert found.advantage.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert found.target is None


def test_parts_are_compared_each_for_itself() -> None:
    told = groups([5, -1, -1], [4, 0])
    tidy = {0: [0.0, 1.0, 0.0], 1: [1.0, 1.0]}
    for group in told:
        for each, value in zip(group.episodes, tidy[group.index], strict=True):
            each.turns[0].verdict = replace(each.turns[0].verdict, parts={"tidy": value})
    weights = {"outcome": 1.0, "tidy": 2.0}
    found = ADVANTAGES["decoupled"](experience(weighed(told, weights), weights=weights))
    # Variance of (0, 1, 0): 1/3. All five tidy in the second group: nothing to compare.
    tidy_part = [x * 3**0.5 for x in (-1 / 3, 2 / 3, -1 / 3)] + [0.0, 0.0]
    outcome = [4 / 12**0.5, -2 / 12**0.5, -2 / 12**0.5, 2 / 8**0.5, -2 / 8**0.5]
    total = torch.tensor([one + 2 * other for one, other in zip(outcome, tidy_part, strict=True)])
    assert found.advantage.tolist() == pytest.approx(
        ((total - total.mean()) / total.std()).tolist(), abs=1e-5
    )
    with pytest.raises(UserError, match="parts is empty"):
        ADVANTAGES["decoupled"](experience(groups([1, 2])))


def test_gae_by_hand_over_turns() -> None:
    # Two episodes: rewards (-1, 5) with values (1, 2), and (3) with value 1; gamma 0.5, lambda 0.5. Backwards:
    # 5 - 2 = 3; -1 + 0.5 * 2 - 1 + 0.25 * 3 = -0.25; 3 - 1 = 2.
    raw = torch.tensor([-0.25, 3.0, 2.0])
    talk = [Group(0, [episode(-1.0, 5.0), episode(3.0)])]
    values = torch.tensor([1.0, 2.0, 1.0])
    found: Advantages = ADVANTAGES["gae"](experience(talk, values=values, gamma=0.5, lam=0.5))
    assert found.target is not None
    assert found.target.tolist() == pytest.approx([0.75, 5.0, 3.0])
    expected = (raw - raw.mean()) / raw.std()
    assert found.advantage.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(UserError, match="values is None"):
        ADVANTAGES["gae"](experience(talk))


def test_every_advantage_of_the_table_is_worked_by_hand_here() -> None:
    assert set(ADVANTAGES) == {
        "group_mean",
        "group_mean_std",
        "leave_one_out",
        "batch_mean_std",
        "decoupled",
        "gae",
    }


def test_the_return_is_the_sum_over_turns_and_goes_to_each_of_them() -> None:
    group = Group(0, [episode(-1.0, -1.0, 5.0), episode(5.0)])
    found = ADVANTAGES["group_mean"](experience([group]))
    assert found.advantage.tolist() == [-1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize("name", ["group_mean", "group_mean_std", "leave_one_out"])
def test_groups_without_variance_and_lone_episodes_get_zero(name: str) -> None:
    assert ADVANTAGES[name](experience(groups([-1, -1, -1], [5]))).advantage.tolist() == [0.0] * 4
    assert ADVANTAGES[name](experience([])).advantage.tolist() == []


def test_overlong_penalty_by_hand() -> None:
    # Of 10 tokens the last 4 are the buffer: free up to 6, then a quarter a token.
    assert [overlong_penalty(n, 4, 10) for n in (1, 6, 7, 9, 10)] == [0.0, 0.0, 0.25, 0.75, 1.0]
    assert overlong_penalty(10, 0, 10) == 0.0
    long = [Group(0, [episode(5.0, length=7), episode(5.0, -1.0, length=10)])]
    assert experience(long, overlong=4, max_length=10).rewards.tolist() == [4.75, 4.0, -2.0]
