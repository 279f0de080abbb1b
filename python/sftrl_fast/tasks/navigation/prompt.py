"""The words of the walk: the question, the answer's shape, the turn after a right and after a wrong answer.

The content follows Chu et al., section A.2 (instructions, action space, sequence of observations and actions,
output as JSON); the wording is ours and short. The paper writes the sequence anew into every prompt; here each
turn adds its observation, so that the dialogue is the sequence.
"""

from __future__ import annotations

import json

from sftrl_fast.tasks.navigation.rail import INTERSECTION, Rail, Step
from sftrl_fast.tasks.navigation.rules import Language

OUTPUT = '{"current observation": "...", "current instruction": "...", "action": "..."}'
QUESTION = """\
[Task] You walk through a city by instructions. At each point, say what you observe and which instruction \
you follow, and choose an action.
[Instructions]
{instructions}
[Actions] forward(), turn_direction(x) and stop(), where x is one of {words}.
[Output] JSON: {output}
[Observations and actions]{views}
{observation}"""
WORDINGS = (
    QUESTION,
    """\
[Instructions]
{instructions}
[Task] Follow these instructions through a city. Say at each point what is to be seen and which of them holds, and act.
[Output] {output}, the action being forward(), stop() or turn_direction(x) with x out of {words}.
[Observations and actions]{views}
{observation}""",
    """\
You find your way through a city. This is the way:
{instructions}
At every point you are told what you observe. Answer as JSON, {output}.
You can act by forward(), by turn_direction(x), x being one of {words}, and by stop().{views}
{observation}""",
    """\
[Actions] turn_direction(x), x one of {words}; forward(); stop()
[Way]
{instructions}
[Answer] JSON at each point of the way: {output}
[What happens]{views}
{observation}""",
)
"""Ways to ask the same; the first is the task's own, the last is kept from training."""
WORKED_OUTPUT = (
    '{"current observation": "...", "current instruction": "...", "reasoning": "...", "action": "..."}'
)
VIEWS = "\nA picture shows four views: in front and to the right above, behind and to the left below."
FOUR_VIEWS = "You observe an image of 4 views"

REVISION = "You failed this trial because {message}. Answer with JSON: {output}"
MOVED_ON = "A_{place} was {action}.\n"


def question(rail: Rail, language: Language, look: str, wording: str = QUESTION, output: str = OUTPUT) -> str:
    """The user's first turn, in one of :data:`WORDINGS`."""
    lines = [f"{number}. {line}" for number, line in enumerate(rail.instructions, start=1)]
    return wording.format(
        instructions="\n".join(lines),
        words=", ".join(language.words),
        output=output,
        views=VIEWS if look == "image" else "",
        observation=observation(rail.steps[0], 0, look),
    )


def observation(step: Step, place: int, look: str) -> str:
    """What is new at point ``place`` (from 0). In pictures the landmark is to be seen, so it is not told."""
    seen = step.observation
    if look == "image":
        seen = f"{FOUR_VIEWS}; {INTERSECTION}" if step.intersection else FOUR_VIEWS
    return f"O_{place + 1}: {seen}\nA_{place + 1}:"


def answer(observed: str, instruction: str, action: str, reasoning: str = "") -> str:
    """The assistant's turn in the demanded shape, with ``reasoning`` ahead of the action if there is some."""
    fields = {"current observation": observed, "current instruction": instruction}
    if reasoning:
        fields["reasoning"] = reasoning
    return json.dumps({**fields, "action": action}, ensure_ascii=False)


def revision(message: str, output: str = OUTPUT) -> str:
    """The user's turn after a wrong answer, with another try left."""
    return REVISION.format(message=message, output=output)


def moved_on(place: int, action: str) -> str:
    """What stands before the next observation when the tries at point ``place`` (from 0) were used up."""
    return MOVED_ON.format(place=place + 1, action=action)
