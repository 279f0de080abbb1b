"""The nouns every layer shares. Plain data; nothing here computes.

Shape letters used across the package: ``B`` rows, ``L`` tokens of a padded row, ``T`` answer tokens of a
batch, ``D`` hidden width, ``V`` vocabulary, ``G`` episodes of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


class UserError(ValueError):
    """Bad input. The message names the key or argument, the value that came, and what would be right.

    The command line prints it as one line and exits with code 2; every other exception is a fault of ours
    and keeps its traceback.
    """


class NotFiniteError(UserError):
    """A number that training rests on came out NaN or infinite. A training step that meets it is skipped."""


Image = npt.NDArray[np.uint8]
"""A picture, ``[height, width, 3]``, red, green, blue; never written to. One object is one picture: what is computed
from it is computed once."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What an environment tells the model: a text, and a picture if there is one to look at."""

    text: str
    image: Image | None = None

    @classmethod
    def of(cls, value: Any) -> Observation:
        """An environment's own form: a text, or a mapping with ``text`` and ``image``."""
        if isinstance(value, Mapping):
            return cls(str(value["text"]), value["image"])
        return cls(str(value))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue that is given and not sampled. ``trained`` matters for assistant turns only."""

    role: str
    text: str
    trained: bool = True
    image: Image | None = field(default=None, compare=False)
    """A picture that comes with the text, for a user's turn."""


Dialogue = list[Message]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the task said about one answer."""

    reward: float
    outcome: int
    """Code of the task's own enumeration (for cards: :class:`sftrl_fast.Outcome`)."""
    success: bool
    message: str
    """The user's next turn when another attempt is left, else the empty string."""
    right: bool = False
    """This answer was right. In a task of several decisions an item is a success only if all of them were."""
    first_try: bool = True
    """The first answer at its decision."""
    recognised: bool | None = None
    """Whether the answer read rightly what was shown to it; None where the task does not judge that apart."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further judgements that a reward can be made of, by name."""


@dataclass(slots=True)
class Turn:
    """One question and the model's answer to it."""

    prompt_ids: list[int]
    """Tokens added to the context ahead of this answer: the whole prompt at the first turn, the end of the
    last answer and the verifier's words at later ones."""
    answer_ids: list[int]
    """Tokens as sampled, the stop token included when one was drawn."""
    logprobs: list[float]
    """Natural-log probability of each answer token under the distribution it was drawn from, float32."""
    text: str
    stopped: bool
    """True if a stop token ended the answer, False if the length limit did."""
    verdict: Verdict
    image: Image | None = field(default=None, compare=False)
    """The picture that came with ``prompt_ids``, which hold its token."""


@dataclass(slots=True)
class Episode:
    """One item answered once, over up to ``verify_iter`` turns."""

    index: int
    sample: int
    turns: list[Turn] = field(default_factory=list)
    demonstrated: bool = False
    """Answered by an expert and not by the policy."""

    @property
    def reward(self) -> float:
        """The return of the episode: the sum of its turns' rewards, undiscounted."""
        return sum(turn.verdict.reward for turn in self.turns)

    @property
    def success(self) -> bool:
        return bool(self.turns) and self.turns[-1].verdict.success

    @property
    def num_tokens(self) -> int:
        """Prompt and answer tokens, each counted once however many turns read them again."""
        return sum(len(turn.prompt_ids) + len(turn.answer_ids) for turn in self.turns)


@dataclass(slots=True)
class Group:
    """``G`` episodes of one item, compared with each other."""

    index: int
    episodes: list[Episode]


@dataclass(frozen=True, slots=True)
class Row:
    """A token sequence to train on; :mod:`sftrl_fast.train.pack` cuts rows into batches."""

    ids: list[int]
    trained: list[bool]
    """``trained[i]`` is True if token ``i`` was an answer token, so that its log-probability is trained."""
    prompt: int = 0
    """Tokens at the row's beginning that are a prompt, none of them trained: rows with the same ones share them."""
    turns: Sequence[int] = ()
    """Trained tokens of each answer, in order; empty outside RL, as are the following."""
    sampled_logprobs: Sequence[float] = ()
    """One a trained token, from the engine that drew it."""
    old_logprobs: Sequence[float] = ()
    """One a trained token, of the policy before the update."""
    advantages: Sequence[float] = ()
    """One a turn."""
    targets: Sequence[float] = ()
    """One a turn: what a critic should have expected before it; empty without a critic."""
    images: tuple[Image, ...] = field(default=(), compare=False)
    """The row's pictures, in the order of their tokens."""
    prompt_images: int = 0
    """How many of them belong to the prompt."""
    demonstrated: bool = False
    """An expert's answers beside the policy's own, in RL."""


@runtime_checkable
class TaskEnv(Protocol):
    """What a task environment offers beside Gymnasium's ``step``.

    ``reset(options={"index": i})`` deals item ``i``, ``0 <= i < num_items``; the observation is the newest
    user message, or a mapping of ``text`` and ``image``, in which a picture that is equal to the last one is not
    shown again; ``info`` of ``step`` holds ``success``, ``outcome`` and ``attempts_left``. A task of several
    decisions an item adds ``right``, whether this answer was, and ``first_try``, whether it was the first at its
    decision; without them an item is one decision. A task that judges reading apart adds ``recognised``; one whose
    answers have further merits adds ``reward_parts``, a number for each name (a vector environment: an array).
    """

    num_items: int

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: str, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def demonstration(self, index: int, draw: int = 0) -> str | Sequence[str]:
        """A right answer to item ``index``, or the right answers in turn if it takes several; ``draw`` picks among
        several ways, the same one each time."""

    def strata(self) -> Sequence[int] | np.ndarray:
        """A small integer for each item, ``[num_items]``; subsets keep its proportions."""

    def questions(self) -> Sequence[int] | np.ndarray:
        """An integer for each item, ``[num_items]``: items that ask the same question have the same, so that
        intervals do not count them as independent. ``range(num_items)`` if no two do."""
