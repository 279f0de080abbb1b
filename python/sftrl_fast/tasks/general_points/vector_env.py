"""GeneralPoints, many hands at a time: every step judges its answers in one call of the C++ verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Tuple
from gymnasium.vector import AutoresetMode

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.env import BUDGET_USED_UP, CardSet, check_options
from sftrl_fast.tasks.general_points.verifier import Outcome
from sftrl_fast.tasks.spaces import AnyText

Texts = tuple[str, ...]


class GeneralPointsVectorEnv(CardSet, gymnasium.vector.VectorEnv[Texts, Sequence[str], np.ndarray]):
    """``num_envs`` rows, each the same as a :class:`~.env.GeneralPointsEnv`. Keywords: ``num_envs`` and those
    of :class:`~.env.CardSet`.

    A finished row waits for ``reset``: its action is ignored, its observation is empty, its reward 0, and
    everything else keeps its last value.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, **keywords: Any) -> None:
        super().__init__(**keywords)
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise UserError(f"num_envs={num_envs!r} must be a whole number of at least 1")
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = AnyText(), AnyText()
        # One space for all rows: a space a row would take longer to build than a batch takes to judge.
        self.observation_space = Tuple((AnyText(),) * num_envs)
        self.action_space = Tuple((AnyText(),) * num_envs)
        self._dealt = False
        self._indices = np.zeros(num_envs, dtype=np.int64)
        self._attempts_left = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._outcome = np.zeros(num_envs, dtype=np.int64)
        self._cards_ok = np.zeros(num_envs, dtype=np.bool_)
        self._value = np.zeros((num_envs, 2), dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Texts, dict[str, Any]]:
        """Deal the items ``options["index"]``, ``[num_envs]``, or ones drawn by ``seed`` when none are given.

        ``infos`` holds ``index`` and ``attempts_left``, int64 ``[num_envs]``.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",))
        if "index" in chosen:
            self._indices = self.checked_indices("options['index']", chosen["index"], (self.num_envs,))
        else:
            self._indices = self.np_random.integers(self.num_items, size=self.num_envs)
        self._attempts_left[:] = self.verify_iter
        self._terminated[:] = False
        self._truncated[:] = False
        self._dealt = True
        different, row_of = np.unique(self._indices, return_inverse=True)
        questions = [self.question(index) for index in different]
        infos = {"index": self._indices.copy(), "attempts_left": self._attempts_left.copy()}
        return tuple(questions[row] for row in row_of), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[Texts, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer to row ``i``.

        Rewards are float64, ``terminated`` and ``truncated`` bool, all ``[num_envs]``. ``infos`` holds
        ``success`` and ``cards_ok`` (bool), ``index``, ``outcome`` and ``attempts_left`` (int64), all
        ``[num_envs]``, and ``value`` (int64 ``[num_envs, 2]``: numerator and denominator, denominator 0 for
        none). Raises ``gymnasium.error.ResetNeeded`` before the first ``reset``.
        """
        self._check_actions(actions, self.num_envs)
        live = np.flatnonzero(~(self._terminated | self._truncated))
        judged, reward = self._judge([actions[row] for row in live.tolist()], live)
        observations, rewards = [""] * self.num_envs, np.zeros(self.num_envs, dtype=np.float64)
        rewards[live] = reward
        for row, observation in zip(live.tolist(), judged, strict=True):
            observations[row] = observation
        return self._results(observations, rewards, slice(None))

    def step_rows(
        self, rows: np.ndarray, actions: Sequence[str]
    ) -> tuple[Texts, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer to row ``rows[i]`` and leave the other rows alone.

        Returns what :meth:`step` does, with an entry for each of ``rows``, int64, which must differ and be under way.
        """
        self._check_actions(actions, len(rows))
        if len(np.unique(rows)) < len(rows) or (self._terminated[rows] | self._truncated[rows]).any():
            raise UserError(f"rows={rows!r:.60} must differ and be rows that are not over")
        observations, rewards = self._judge(actions, rows)
        return self._results(observations, rewards, rows)

    def _judge(self, actions: Sequence[str], rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Observation and reward of each of ``rows``, all of them under way."""
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
        observations = [""] * len(rows)
        again = np.flatnonzero(~(right | exhausted))
        if again.size:
            messages = verdicts.messages()
            for place in again.tolist():
                observations[place] = prompt.revision(messages[place])
        return observations, verdicts.reward + BUDGET_USED_UP * exhausted

    def _results(
        self, observations: list[str], rewards: np.ndarray, rows: np.ndarray | slice
    ) -> tuple[Texts, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        infos = {
            "index": self._indices[rows].copy(),
            "attempts_left": self._attempts_left[rows].copy(),
            "success": self._terminated[rows].copy(),
            "outcome": self._outcome[rows].copy(),
            "cards_ok": self._cards_ok[rows].copy(),
            "value": self._value[rows].copy(),
        }
        return (
            tuple(observations),
            rewards,
            self._terminated[rows].copy(),
            self._truncated[rows].copy(),
            infos,
        )

    def _check_actions(self, actions: Sequence[str], rows: int) -> None:
        if isinstance(actions, str) or len(actions) != rows:
            raise UserError(f"answers={actions!r:.60} must be {rows} strings, one a row")
        for row, answer in enumerate(actions):
            if not isinstance(answer, str):
                raise UserError(f"answers[{row}]={answer!r:.60} must be a string")
