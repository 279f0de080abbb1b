"""The expert that writes the demonstrations of SFT: it sees the rail."""

from __future__ import annotations

from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.rail import Rail, Step


def right_answer(step: Step) -> str:
    """The right answer at a point."""
    return prompt.answer(step.observation, step.instruction, step.action)


def demonstrate(rail: Rail) -> tuple[str, ...]:
    """The right answers along a rail, one a point."""
    return tuple(right_answer(step) for step in rail.steps)
