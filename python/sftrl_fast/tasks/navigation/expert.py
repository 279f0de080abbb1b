"""The expert that writes the demonstrations of SFT: it sees the rail."""

from __future__ import annotations

from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.rail import Rail, Step
from sftrl_fast.tasks.navigation.rules import FORWARD, STOP


def right_answer(step: Step, *, reasoning: bool = False) -> str:
    """The right answer at a point, with ``reasoning`` also why it is right."""
    why = reason(step) if reasoning else ""
    return prompt.answer(step.observation, step.instruction, step.action, why)


def reason(step: Step) -> str:
    """Why the action is right, of what can be seen and read."""
    if step.action == STOP:
        return f"The goal of instruction {step.number} is reached and no other follows, so I stop."
    if step.action == FORWARD:
        return f"The goal of instruction {step.number} is not reached yet, so I go on."
    here = "The last instruction's goal is reached" if step.intersection else "I am at the start"
    return f"{here} and instruction {step.number} says to turn, so I turn."


def demonstrate(rail: Rail, *, reasoning: bool = False) -> tuple[str, ...]:
    """The right answers along a rail, one a point."""
    return tuple(right_answer(step, reasoning=reasoning) for step in rail.steps)
