"""GeneralPoints as a Gymnasium environment of text: one hand, up to ``verify_iter`` answers.

:class:`CardSet` holds what this environment and its vector form (``vector_env.py``) share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.deal import PARTS, deal
from sftrl_fast.tasks.general_points.expert import demonstrate
from sftrl_fast.tasks.general_points.rules import FIRST_FACE, RULES, rank_names
from sftrl_fast.tasks.general_points.verifier import REWARDS, Outcome, Verdicts, verify
from sftrl_fast.tasks.spaces import AnyText

# Added to the last wrong turn in both reward tables. The published code gives it in a further turn, whose
# answer it does not judge: undiscounted, the episode's return is the same, and that turn's tokens are saved.
BUDGET_USED_UP = -1.0


def _one_of(key: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value!r} is unknown; choose one of {', '.join(map(str, choices))}")


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


class CardSet:
    """The items of one set and how they are asked, shown and judged.

    ``rule``, ``part``, ``with_face`` and ``every_order`` choose the hands, as
    :func:`~sftrl_fast.tasks.general_points.deal.deal` says, and come with the environment's id. The user's
    own keywords: ``verify_iter``, answers an episode may take, at least 1; ``rewards``, ``"exact"`` or
    ``"reference"``; ``target``. Anything else, and a target that no hand of the set reaches, raises
    :class:`~sftrl_fast.core.UserError`.
    """

    def __init__(
        self,
        *,
        rule: str = "face10",
        part: str = "train",
        with_face: bool | None = None,
        every_order: bool = False,
        verify_iter: int = 5,
        rewards: str = "exact",
        target: int = 24,
        **unknown: object,
    ) -> None:
        for key, value in unknown.items():
            raise UserError(
                f"{key}={value!r} is no keyword of this task; it takes verify_iter, rewards, target"
            )
        _one_of("rule", rule, tuple(RULES))
        _one_of("part", part, PARTS)
        _one_of("with_face", with_face, (None, True, False))
        _one_of("every_order", every_order, (True, False))
        _one_of("rewards", rewards, REWARDS)
        if not _is_int(verify_iter) or verify_iter < 1:
            raise UserError(f"verify_iter={verify_iter!r} must be a whole number of at least 1")
        if not _is_int(target):
            raise UserError(f"target={target!r} must be a whole number, such as 24")
        self.rule, self.part, self.rewards = RULES[rule], part, rewards
        self.verify_iter, self.target = int(verify_iter), int(target)
        self.items = deal(rule, self.target, part, with_face=with_face, every_order=every_order)
        """Ranks 1..13 in the order they lie, int64 ``[num_items, 4]``."""
        self.num_items = len(self.items)
        if not self.num_items:
            raise UserError(
                f"target={target!r} is reached by no hand of this set; choose another, such as 24"
            )

    def strata(self) -> np.ndarray:
        """How many face cards each item holds, 0 to 4, int64 ``[num_items]``."""
        return (self.items >= FIRST_FACE).sum(axis=1)

    def questions(self) -> np.ndarray:
        """A number for each item's numbers in any order, int64 ``[num_items]``: ``10 J`` asks what ``10 10`` asks."""
        numbers = [sorted(self.rule.numbers(ranks)) for ranks in self.items.tolist()]
        return np.unique(numbers, axis=0, return_inverse=True)[1].reshape(-1)

    def demonstration(self, index: int, draw: int = 0) -> str:
        """A right answer to item ``index``; ``draw`` picks among its solutions, the same one each time."""
        item = int(self.checked_indices("index", index, ()))
        ranks = self.items[item].tolist()
        return demonstrate(ranks, self.rule, self.target, key=(self.rule.name, self.part, item, draw))

    def question(self, index: int) -> str:
        """The first user message of item ``index``."""
        return prompt.question(self.items[index].tolist(), self.rule, self.target)

    def judge(self, answers: Sequence[str], indices: Sequence[int] | np.ndarray) -> Verdicts:
        """One verdict an answer, ``answers[i]`` to item ``indices[i]``."""
        return verify(
            answers, self.items[indices], rule=self.rule.name, target=self.target, rewards=self.rewards
        )

    def checked_indices(self, key: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
        """``value`` as item numbers of ``shape``; ``UserError`` naming ``key`` if it is anything else."""
        indices = np.asarray(value)
        if indices.shape != shape or indices.dtype.kind not in "iu":
            wanted = f"{shape[0]} item numbers" if shape else "an item number"
            raise UserError(f"{key}={value!r} must be {wanted}, from 0 to {self.num_items - 1}")
        outside = indices[(indices < 0) | (indices >= self.num_items)]
        if outside.size:
            raise UserError(f"{key}={outside[0]} is outside the set; choose from 0 to {self.num_items - 1}")
        return indices.astype(np.int64)


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of a ``reset``; ``UserError`` for one that is not ``known``."""
    for key, value in (options or {}).items():
        if key not in known:
            raise UserError(f"options[{key!r}]={value!r} is unknown; reset takes {', '.join(known)}")
    return options or {}


class GeneralPointsEnv(CardSet, gymnasium.Env[str, str]):
    """One hand at a time. Keywords: :class:`CardSet`.

    An observation is the newest user message, empty when the episode is over; an action is the model's
    answer. A right answer terminates, the ``verify_iter``-th wrong one truncates and costs 1 more.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._index = 0
        self._attempts_left = 0
        self._live = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Deal item ``options["index"]``, or one drawn by ``seed`` when no index is given.

        ``info`` holds ``index``, ``attempts_left`` and the task's facts: ``cards`` (names), ``numbers``,
        ``rule`` and ``target``.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",))
        if "index" in chosen:
            self._index = int(self.checked_indices("options['index']", chosen["index"], ()))
        else:
            self._index = int(self.np_random.integers(self.num_items))
        self._attempts_left = self.verify_iter
        self._live = True
        return self.question(self._index), self._facts()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge the answer ``action``.

        ``info`` adds to that of :meth:`reset`: ``success``, ``outcome`` (:class:`~sftrl_fast.Outcome`),
        ``cards_ok``, the verifier's ``message`` and the formula's ``value``, ``"n/d"`` or None.
        Raises ``gymnasium.error.ResetNeeded`` when no episode is under way.
        """
        if not self._live:
            raise gymnasium.error.ResetNeeded("no episode is under way: call reset before step")
        if not isinstance(action, str):
            raise UserError(f"answer={action!r} must be a string")
        verdicts = self.judge([action], [self._index])
        outcome = Outcome(int(verdicts.outcome[0]))
        message = verdicts.messages()[0]
        numerator, denominator = verdicts.value[0].tolist()
        self._attempts_left -= 1
        terminated = outcome is Outcome.RIGHT
        truncated = not terminated and self._attempts_left == 0
        self._live = not (terminated or truncated)
        info = self._facts() | {
            "success": terminated,
            "outcome": int(outcome),
            "cards_ok": bool(verdicts.cards_ok[0]),
            "message": message,
            "value": f"{numerator}/{denominator}" if denominator else None,
        }
        reward = float(verdicts.reward[0]) + (BUDGET_USED_UP if truncated else 0.0)
        return prompt.revision(message) if self._live else "", reward, terminated, truncated, info

    def _facts(self) -> dict[str, Any]:
        ranks = self.items[self._index].tolist()
        return {
            "index": self._index,
            "attempts_left": self._attempts_left,
            "cards": rank_names(ranks),
            "numbers": self.rule.numbers(ranks),
            "rule": self.rule.name,
            "target": self.target,
        }
