"""Rewards that are weighted sums of what a task judged."""

from __future__ import annotations

import pytest

from sftrl_fast.algo.rewards import check_parts, weighed
from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict


def talk(*verdicts: Verdict) -> list[Group]:
    turns = [Turn([1], [2], [0.0], "", True, verdict) for verdict in verdicts]
    return [Group(0, [Episode(0, 0, turns)])]


def test_the_reward_of_each_turn_is_the_weighted_sum() -> None:
    first = Verdict(-1.0, 3, False, "again", recognised=True, parts={"cards": 0.25})
    last = Verdict(5.0, 0, True, "", right=True, recognised=False, parts={"cards": 1.0})
    (group,) = weighed(talk(first, last), {"outcome": 1.0, "right": 2.0, "recognised": -0.5, "cards": 4.0})
    one, other = (turn.verdict for turn in group.episodes[0].turns)
    assert (one.reward, other.reward) == (-1.0 - 0.5 + 1.0, 5.0 + 2.0 + 4.0)
    assert other.parts == {"outcome": 5.0, "right": 1.0, "recognised": 0.0, "cards": 1.0}
    assert group.episodes[0].reward == -0.5 + 11.0
    assert (one.outcome, one.message, other.success) == (3, "again", True)


def test_without_weights_the_task_s_reward_stays() -> None:
    verdict = Verdict(5.0, 0, True, "", parts={"cards": 1.0})
    (group,) = weighed(talk(verdict), {})
    assert group.episodes[0].turns[0].verdict is verdict


def test_a_part_nobody_judged_is_refused() -> None:
    with pytest.raises(UserError, match=r"rl.reward_parts.recognised: the task said nothing"):
        weighed(talk(Verdict(1.0, 0, True, "")), {"recognised": 1.0})
    info = {"success": True, "recognised": True, "reward_parts": {"cards": 1.0}}
    check_parts({"outcome": 1.0, "right": 1.0, "recognised": 1.0, "cards": 1.0}, info)
    with pytest.raises(
        UserError, match=r"rl.reward_parts.card: the task judges outcome, right, recognised, cards$"
    ):
        check_parts({"card": 1.0}, info)
    with pytest.raises(UserError, match=r"rl.reward_parts.recognised: the task judges outcome, right$"):
        check_parts({"recognised": 1.0}, {"success": True})
