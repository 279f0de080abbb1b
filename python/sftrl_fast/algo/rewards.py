"""The reward of an answer as a weighted sum of what was judged about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftrl_fast.core import Group, UserError, Verdict

OUTCOME, RIGHT, RECOGNISED = "outcome", "right", "recognised"
"""Parts that are there without a task's naming them: the task's own reward, and two of its judgements as 1 or 0."""


def weighed(groups: Sequence[Group], weights: Mapping[str, float]) -> list[Group]:
    """``groups`` with the sum of weight x part as each answer's reward, and the parts beside it.

    Without weights the task's reward stays. Raises :class:`UserError` for a part that an answer has not.
    """
    for turn in (turn for group in groups for episode in group.episodes for turn in episode.turns):
        if weights:
            parts = {name: _part(turn.verdict, name) for name in weights}
            reward = sum(weight * parts[name] for name, weight in weights.items())
            turn.verdict = replace(turn.verdict, reward=reward, parts=parts)
    return list(groups)


def check_parts(weights: Mapping[str, float], info: Mapping[str, Any]) -> None:
    """``UserError`` for parts that a task does not judge whose ``info`` of an answer is this."""
    known = [OUTCOME, RIGHT, *([RECOGNISED] if RECOGNISED in info else []), *info.get("reward_parts", {})]
    for name in weights:
        if name not in known:
            raise UserError(f"rl.reward_parts.{name}: the task judges {', '.join(known)}")


def _part(verdict: Verdict, name: str) -> float:
    if name in verdict.parts:
        return verdict.parts[name]
    if name == OUTCOME:
        return verdict.reward
    if name == RIGHT:
        return float(verdict.right)
    if name == RECOGNISED and verdict.recognised is not None:
        return float(verdict.recognised)
    raise UserError(f"rl.reward_parts.{name}: the task said nothing of it about an answer")
