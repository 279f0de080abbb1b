"""Episodes in groups to one advantage each."""

from __future__ import annotations

import pytest

from sftrl_fast.algo.advantages import ADVANTAGES, episode_advantages
from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict


def episode(*rewards: float) -> Episode:
    """An episode whose turns earned these rewards."""
    verdicts = [Verdict(reward, 0, False, "") for reward in rewards]
    return Episode(0, 0, [Turn([1], [2], [-0.5], "x", True, verdict) for verdict in verdicts])


def groups(*returns: list[float]) -> list[Group]:
    return [Group(i, [episode(reward) for reward in row]) for i, row in enumerate(returns)]


def test_each_advantage_by_hand_on_ragged_groups() -> None:
    # mean of (5, -1, -1) is 1, sample variance (16 + 4 + 4) / 2 = 12; the second group has mean 2, variance 8
    ragged = groups([5, -1, -1], [4, 0])
    root = 12**0.5
    expected: dict[str, list[list[float]]] = {
        "group_mean": [[4, -2, -2], [2, -2]],
        "group_mean_std": [[4 / root, -2 / root, -2 / root], [2 / 8**0.5, -2 / 8**0.5]],
        "leave_one_out": [[6, -3, -3], [4, -4]],
    }
    assert set(expected) == set(ADVANTAGES)
    for name, rows in expected.items():
        got = episode_advantages(ragged, name)
        assert len(got) == len(rows)
        for values, by_hand in zip(got, rows, strict=True):
            assert values == pytest.approx(by_hand, abs=1e-6)


def test_the_return_is_the_sum_over_turns() -> None:
    group = Group(0, [episode(-1.0, -1.0, 5.0), episode(5.0)])
    assert episode_advantages([group], "group_mean") == [[-1.0, 1.0]]


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_groups_without_variance_and_lone_episodes_get_zero(name: str) -> None:
    assert episode_advantages(groups([-1, -1, -1], [5]), name) == [[0.0, 0.0, 0.0], [0.0]]
    assert episode_advantages([], name) == []


def test_unknown_advantage_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'median'.*group_mean_std"):
        episode_advantages([], "median")
