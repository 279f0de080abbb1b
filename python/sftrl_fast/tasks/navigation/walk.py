"""One walk along a rail: what the environment of a single route and that of many have in common."""

from __future__ import annotations

from dataclasses import dataclass

from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.rail import Rail, Step
from sftrl_fast.tasks.navigation.rules import Language
from sftrl_fast.tasks.navigation.verifier import BUDGET_USED_UP, Outcome, verify


@dataclass(slots=True)
class Walk:
    """A right action moves on along the rail; so does the last of ``verify_iter`` wrong ones, but then the route
    has failed."""

    rail: Rail
    language: Language
    look: str
    rewards: str
    verify_iter: int
    wording: str = prompt.QUESTION
    """How the question is put, one of ``prompt.WORDINGS``."""
    output: str = prompt.OUTPUT
    """The shape an answer is asked to have."""
    place: int = 0
    """Point of the rail, from 0."""
    attempts_left: int = 0
    failed: bool = False
    over: bool = False
    outcome: Outcome = Outcome.RIGHT
    """Of the last answer."""
    first_try: bool = True
    """Whether the last answer was the first at its point."""
    message: str = ""
    """The verifier's words on the last answer."""

    def __post_init__(self) -> None:
        self.attempts_left = self.verify_iter

    @property
    def step(self) -> Step:
        return self.rail.steps[self.place]

    @property
    def success(self) -> bool:
        return self.over and not self.failed

    def question(self) -> str:
        """The first user message."""
        return prompt.question(self.rail, self.language, self.look, self.wording, self.output)

    def answer(self, text: str) -> tuple[str, float]:
        """Take the model's answer; the next user message, empty when the walk is over, and the reward."""
        step = self.rail.steps[self.place]
        verdict = verify(text, step, self.language, self.rewards)
        right = verdict.outcome is Outcome.RIGHT
        self.outcome, self.message = verdict.outcome, verdict.message
        self.first_try = self.attempts_left == self.verify_iter
        self.attempts_left -= 1
        if not right and self.attempts_left:
            return prompt.revision(verdict.message, self.output), verdict.reward
        self.failed |= not right
        reward = verdict.reward if right else verdict.reward + BUDGET_USED_UP
        if self.place == len(self.rail.steps) - 1:
            self.over = True
            return "", reward
        before = "" if right else prompt.moved_on(self.place, step.action)
        self.place += 1
        self.attempts_left = self.verify_iter
        return before + prompt.observation(self.step, self.place, self.look), reward
