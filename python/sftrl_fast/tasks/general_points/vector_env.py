"""GeneralPoints, many hands at a time: every step judges its answers in one call of the C++ verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Tuple
from gymnasium.vector import AutoresetMode

from sftrl_fast.core import UserError
from sftrl_fast.tasks.arguments import check_answers, check_num_envs, check_options, checked_indices
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.env import BUDGET_USED_UP, CardSet, reward_parts
from sftrl_fast.tasks.general_points.verifier import Outcome
from sftrl_fast.tasks.spaces import AnyText, Observation

Observations = tuple[Observation, ...]


class GeneralPointsVectorEnv(CardSet, gymnasium.vector.VectorEnv[Observations, Sequence[str], np.ndarray]):
    """``num_envs`` rows, each the same as a :class:`~.env.GeneralPointsEnv`. Keywords: ``num_envs`` and those
    of :class:`~.env.CardSet`.

    A finished row waits for ``reset``: its action is ignored, its observation is empty, its reward 0, and
    everything else keeps its last value. Pictures are read-only, and rows of one item share theirs.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, **keywords: Any) -> None:
        super().__init__(**keywords)
        check_num_envs(num_envs)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self.space(), AnyText()
        # One space for all rows: a space a row would take longer to build than a batch takes to judge.
        self.observation_space = Tuple((self.space(),) * num_envs)
        self.action_space = Tuple((AnyText(),) * num_envs)
        self._dealt = False
        self._pictures: list[np.ndarray | None] = [None] * num_envs
        self._indices = np.zeros(num_envs, dtype=np.int64)
        self._attempts_left = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._outcome = np.zeros(num_envs, dtype=np.int64)
        self._cards_ok = np.zeros(num_envs, dtype=np.bool_)
        self._value = np.zeros((num_envs, 2), dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Deal the items ``options["index"]``, ``[num_envs]``, or ones drawn by ``seed`` when none are given.

        ``infos`` holds ``index`` and ``attempts_left``, int64 ``[num_envs]``.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",))
        if "index" in chosen:
            self._indices = checked_indices(
                "options['index']", chosen["index"], (self.num_envs,), self.num_items
            )
        else:
            self._indices = self.np_random.integers(self.num_items, size=self.num_envs)
        self._attempts_left[:] = self.verify_iter
        self._terminated[:] = False
        self._truncated[:] = False
        self._dealt = True
        different, row_of = np.unique(self._indices, return_inverse=True)
        questions = [self.question(index) for index in different]
        pictures = [self.picture(index) for index in different]
        self._pictures = [pictures[row] for row in row_of]
        infos = {"index": self._indices.copy(), "attempts_left": self._attempts_left.copy()}
        shown = (self.observation(questions[row], pictures[row]) for row in row_of)
        return tuple(shown), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer to row ``i``.

        Rewards are float64, ``terminated`` and ``truncated`` bool, all ``[num_envs]``. ``infos`` holds
        ``success`` and ``cards_ok`` (bool), ``index``, ``outcome`` and ``attempts_left`` (int64), all
        ``[num_envs]``, and ``value`` (int64 ``[num_envs, 2]``: numerator and denominator, denominator 0 for
        none), and :func:`~sftrl_fast.tasks.general_points.env.reward_parts`; with pictures also ``recognised``, the
        same as ``cards_ok``. Raises ``gymnasium.error.ResetNeeded`` before the first ``reset``.
        """
        check_answers(actions, self.num_envs)
        live = np.flatnonzero(~(self._terminated | self._truncated))
        judged, reward = self._judge([actions[row] for row in live.tolist()], live)
        texts, rewards = [""] * self.num_envs, np.zeros(self.num_envs, dtype=np.float64)
        rewards[live] = reward
        for row, text in zip(live.tolist(), judged, strict=True):
            texts[row] = text
        return self._results(texts, rewards, slice(None))

    def step_rows(
        self, rows: np.ndarray, actions: Sequence[str]
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer to row ``rows[i]`` and leave the other rows alone.

        Returns what :meth:`step` does, with an entry for each of ``rows``, int64, which must differ and be under way.
        """
        check_answers(actions, len(rows))
        if len(np.unique(rows)) < len(rows) or (self._terminated[rows] | self._truncated[rows]).any():
            raise UserError(f"rows={rows!r:.60} must differ and be rows that are not over")
        texts, rewards = self._judge(actions, rows)
        return self._results(texts, rewards, rows)

    def _judge(self, actions: Sequence[str], rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Next message and reward of each of ``rows``, all of them under way."""
        if not self._dealt:
            raise gymnasium.error.ResetNeeded("no episodes are under way: call reset before step")
        verdicts = self.judge(actions, self._indices[rows])
        right = verdicts.outcome == Outcome.RIGHT
        self._attempts_left[rows] -= 1
        exhausted = ~right & (self._attempts_left[rows] == 0)
        self._terminated[rows] = right
        self._truncated[rows] = exhausted
        self._outcome[rows] = verdicts.outcome
        self._cards_ok[rows] = verdicts.cards_ok
        self._value[rows] = verdicts.value
        texts = [""] * len(rows)
        again = np.flatnonzero(~(right | exhausted))
        if again.size:
            messages = verdicts.messages()
            for place in again.tolist():
                texts[place] = prompt.revision(messages[place])
        return texts, verdicts.reward + BUDGET_USED_UP * exhausted

    def _results(
        self, texts: list[str], rewards: np.ndarray, rows: np.ndarray | slice
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        infos = {
            "index": self._indices[rows].copy(),
            "attempts_left": self._attempts_left[rows].copy(),
            "success": self._terminated[rows].copy(),
            "outcome": self._outcome[rows].copy(),
            "cards_ok": self._cards_ok[rows].copy(),
            "value": self._value[rows].copy(),
            "reward_parts": reward_parts(self._cards_ok[rows], self._outcome[rows]),
        }
        if self.look == "image":
            infos["recognised"] = infos["cards_ok"]
        pictures = (self._pictures[row] for row in np.arange(self.num_envs)[rows])
        return (
            tuple(map(self.observation, texts, pictures)),
            rewards,
            self._terminated[rows].copy(),
            self._truncated[rows].copy(),
            infos,
        )
