"""GeneralPoints as a Gymnasium environment: one hand, up to ``verify_iter`` answers.

:class:`CardSet` holds what this environment and its vector form (``vector_env.py``) share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space

from sftrl_fast.core import UserError
from sftrl_fast.tasks.arguments import (
    check_at_least_one,
    check_choice,
    check_options,
    checked_indices,
    is_whole,
)
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.deal import PARTS, deal
from sftrl_fast.tasks.general_points.expert import demonstrate
from sftrl_fast.tasks.general_points.rules import FIRST_FACE, RULES, rank_names
from sftrl_fast.tasks.general_points.verifier import REWARDS, Outcome, Verdicts, verify
from sftrl_fast.tasks.phrasing import PHRASINGS, wording
from sftrl_fast.tasks.spaces import LOOKS, AnyText, Observation, observation_space

DEFAULT_SIZE = 1200
"""Pixels along a side of a picture, as the paper's have."""

# Added to the last wrong turn in both reward tables. The published code gives it in a further turn, whose
# answer it does not judge: undiscounted, the episode's return is the same, and that turn's tokens are saved.
BUDGET_USED_UP = -1.0


def reward_parts(cards_ok: np.ndarray, outcome: np.ndarray) -> dict[str, np.ndarray]:
    """1 or 0 for each answer: ``cards``, listed rightly; ``formed``, a formula that can be computed."""
    return {"cards": cards_ok.astype(np.float64), "formed": (outcome != Outcome.MALFORMED).astype(np.float64)}


class CardSet:
    """The items of one set and how they are asked, shown and judged.

    ``rule``, ``part``, ``with_face`` and ``every_order`` choose the hands, as
    :func:`~sftrl_fast.tasks.general_points.deal.deal` says, and come with the environment's id; so do ``look``,
    ``"text"`` or ``"image"``, and the picture's ``deck``. The user's own keywords: ``verify_iter``, answers an
    episode may take, at least 1; ``rewards``, ``"exact"`` or ``"reference"``; ``target``; ``phrasing``, a name of
    :data:`~sftrl_fast.tasks.phrasing.PHRASINGS`; ``reasoning``, whether the answer works the formula out first; with
    pictures also ``size``, pixels along a side. Anything else, and a target that no hand of the set reaches, raises
    :class:`~sftrl_fast.core.UserError`.
    """

    def __init__(
        self,
        *,
        rule: str = "face10",
        part: str = "train",
        with_face: bool | None = None,
        every_order: bool = False,
        look: str = "text",
        deck: str = "black",
        verify_iter: int = 5,
        rewards: str = "exact",
        target: int = 24,
        phrasing: str = "plain",
        reasoning: bool = False,
        **unknown: object,
    ) -> None:
        check_choice("look", look, LOOKS)
        self.look, self.deck, self.size = look, deck, DEFAULT_SIZE
        if look == "image":
            self.size = self._checked_picture(deck, unknown.pop("size", DEFAULT_SIZE))
        for key, value in unknown.items():
            known = "verify_iter, rewards, target, phrasing, reasoning" + (
                ", size" if look == "image" else ""
            )
            raise UserError(f"{key}={value!r} is no keyword of this task; it takes {known}")
        check_choice("rule", rule, tuple(RULES))
        check_choice("part", part, PARTS)
        check_choice("with_face", with_face, (None, True, False))
        check_choice("every_order", every_order, (True, False))
        check_choice("rewards", rewards, REWARDS)
        check_choice("phrasing", phrasing, PHRASINGS)
        check_choice("reasoning", reasoning, (True, False))
        check_at_least_one("verify_iter", verify_iter)
        if not is_whole(target):
            raise UserError(f"target={target!r} must be a whole number, such as 24")
        self.rule, self.part, self.rewards = RULES[rule], part, rewards
        self.verify_iter, self.target = int(verify_iter), int(target)
        self.phrasing, self.reasoning = phrasing, reasoning
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
        item = int(checked_indices("index", index, (), self.num_items))
        ranks = self.items[item].tolist()
        key = (self.rule.name, self.part, item, draw)
        return demonstrate(ranks, self.rule, self.target, key=key, steps=self.reasoning)

    def question(self, index: int) -> str:
        """The first user message of item ``index``."""
        ranks = self.items[index].tolist() if self.look == "text" else None
        words = wording(self.phrasing, prompt.WORDINGS, self.rule.name, self.part, int(index))
        return prompt.question(ranks, self.rule, self.target, words, worked=self.reasoning)

    def picture(self, index: int) -> np.ndarray | None:
        """The table of item ``index``, uint8 ``[size, size, 3]``, read-only; None for a task of text."""
        if self.look == "text":
            return None
        # Only here: an environment of text needs no image library.
        from sftrl_fast.tasks.general_points import render

        ranks = self.items[index].tolist()
        suits = render.deal_suits(ranks, render.get_deck(self.deck))
        table = render.draw_table(ranks, suits, self.deck, self.size)
        table.setflags(write=False)
        return table

    def space(self) -> Space[Any]:
        """The space of one observation."""
        return observation_space(self.size if self.look == "image" else None)

    @staticmethod
    def observation(text: str, picture: np.ndarray | None) -> Observation:
        return text if picture is None else {"text": text, "image": picture}

    @staticmethod
    def _checked_picture(deck: str, size: Any) -> int:
        from sftrl_fast.tasks.general_points import render

        render.get_deck(deck)
        render.check_size(size)
        return int(size)

    def judge(self, answers: Sequence[str], indices: Sequence[int] | np.ndarray) -> Verdicts:
        """One verdict an answer, ``answers[i]`` to item ``indices[i]``."""
        return verify(
            answers, self.items[indices], rule=self.rule.name, target=self.target, rewards=self.rewards,
            cards_shown=self.look == "image",
        )  # fmt: skip


class GeneralPointsEnv(CardSet, gymnasium.Env[Observation, str]):
    """One hand at a time. Keywords: :class:`CardSet`.

    An observation is the newest user message, empty when the episode is over, and with pictures also the table, the
    same throughout an episode; an action is the model's answer. A right answer terminates, the ``verify_iter``-th
    wrong one truncates and costs 1 more.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.observation_space = self.space()
        self.action_space = AnyText()
        self._index = 0
        self._picture: np.ndarray | None = None
        self._attempts_left = 0
        self._live = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Deal item ``options["index"]``, or one drawn by ``seed`` when no index is given.

        ``info`` holds ``index``, ``attempts_left`` and the task's facts: ``cards`` (names), ``numbers``,
        ``rule`` and ``target``.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",))
        if "index" in chosen:
            self._index = int(checked_indices("options['index']", chosen["index"], (), self.num_items))
        else:
            self._index = int(self.np_random.integers(self.num_items))
        self._attempts_left = self.verify_iter
        self._live = True
        self._picture = self.picture(self._index)
        return self._shown(self.question(self._index)), self._facts()

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judge the answer ``action``.

        ``info`` adds to that of :meth:`reset`: ``success``, ``outcome`` (:class:`~sftrl_fast.Outcome`),
        ``cards_ok``, the verifier's ``message``, the formula's ``value``, ``"n/d"`` or None, and
        :func:`reward_parts`; with pictures also ``recognised``, the same as ``cards_ok``.
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
            "reward_parts": {
                name: float(values[0])
                for name, values in reward_parts(verdicts.cards_ok, verdicts.outcome).items()
            },
        }
        if self.look == "image":
            info["recognised"] = info["cards_ok"]
        reward = float(verdicts.reward[0]) + (BUDGET_USED_UP if truncated else 0.0)
        observation = self._shown(prompt.revision(message) if self._live else "")
        return observation, reward, terminated, truncated, info

    def _shown(self, text: str) -> Observation:
        """A new observation each time, for its receiver to keep."""
        return self.observation(text, None if self._picture is None else self._picture.copy())

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
