"""Navigation, many routes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Tuple
from gymnasium.vector import AutoresetMode

from sftrl_fast.core import UserError
from sftrl_fast.tasks.arguments import check_answers, check_num_envs, check_options, checked_indices
from sftrl_fast.tasks.navigation.env import RouteSet
from sftrl_fast.tasks.navigation.verifier import Outcome
from sftrl_fast.tasks.navigation.walk import Walk
from sftrl_fast.tasks.spaces import AnyText, Observation

Observations = tuple[Observation, ...]


class NavigationVectorEnv(RouteSet, gymnasium.vector.VectorEnv[Observations, Sequence[str], np.ndarray]):
    """``num_envs`` rows, each the same as a :class:`~.env.NavigationEnv`. Keywords: ``num_envs`` and those
    of :class:`~.env.RouteSet`.

    A finished row waits for ``reset``: its action is ignored, its text is empty, its reward 0, and
    everything else keeps its last value.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, **keywords: Any) -> None:
        super().__init__(**keywords)
        check_num_envs(num_envs)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self.space(), AnyText()
        self.observation_space = Tuple((self.single_observation_space,) * num_envs)
        self.action_space = Tuple((self.single_action_space,) * num_envs)
        self._indices = np.zeros(num_envs, dtype=np.int64)
        self._walks: list[Walk] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin the items ``options["index"]``, ``[num_envs]``, or ones drawn by ``seed`` when none are given.

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
        self._walks = [self.walk(index) for index in self._indices.tolist()]
        # Rows that walk one route share its question, a long text.
        questions: dict[int, str] = {}
        for index, walk in zip(self._indices.tolist(), self._walks, strict=True):
            if index not in questions:
                questions[index] = walk.question()
        infos = {"index": self._indices.copy(), "attempts_left": np.full(self.num_envs, self.verify_iter)}
        texts = [questions[index] for index in self._indices.tolist()]
        return self._observations(texts, self._walks, self._indices), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer of row ``i``.

        Rewards are float64, ``terminated`` and ``truncated`` bool, all ``[num_envs]``. ``infos`` holds
        ``success``, ``right`` and ``first_try`` (bool), ``index``, ``outcome``, ``attempts_left`` and ``point``
        (int64), all ``[num_envs]``. Raises ``gymnasium.error.ResetNeeded`` before the first ``reset``.
        """
        self._check_actions(actions, self.num_envs)
        observations, rewards = [], np.zeros(self.num_envs)
        for row, walk in enumerate(self._walks):
            observation = ""
            if not walk.over:
                observation, rewards[row] = walk.answer(actions[row])
            observations.append(observation)
        return self._results(observations, rewards, self._walks, self._indices)

    def step_rows(
        self, rows: np.ndarray, actions: Sequence[str]
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge ``actions[i]`` as the answer of row ``rows[i]`` and leave the other rows alone.

        Returns what :meth:`step` does, with an entry for each of ``rows``, int64, which must differ and be under way.
        """
        self._check_actions(actions, len(rows))
        walks = [self._walks[row] for row in rows.tolist()]
        if len(np.unique(rows)) < len(rows) or any(walk.over for walk in walks):
            raise UserError(f"rows={rows!r:.60} must differ and be rows that are not over")
        judged = [walk.answer(action) for walk, action in zip(walks, actions, strict=True)]
        observations, rewards = [text for text, _ in judged], np.array([reward for _, reward in judged])
        return self._results(observations, rewards, walks, self._indices[rows])

    def _results(
        self, observations: list[str], rewards: np.ndarray, walks: list[Walk], indices: np.ndarray
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        over = np.array([walk.over for walk in walks])
        failed = np.array([walk.failed for walk in walks])
        outcome = np.array([walk.outcome for walk in walks], dtype=np.int64)
        infos = {
            "index": indices.copy(),
            "attempts_left": np.array([walk.attempts_left for walk in walks]),
            "point": np.array([walk.place for walk in walks]),
            "success": over & ~failed,
            "right": outcome == Outcome.RIGHT,
            "first_try": np.array([walk.first_try for walk in walks]),
            "outcome": outcome,
        }
        shown = self._observations(observations, walks, indices)
        return shown, rewards, over & ~failed, over & failed, infos

    def _observations(self, texts: list[str], walks: list[Walk], indices: np.ndarray) -> Observations:
        if self.look == "text":
            return tuple(texts)
        rows = zip(indices.tolist(), walks, texts, strict=True)
        return tuple(self.observation(index, walk, text) for index, walk, text in rows)

    def _check_actions(self, actions: Sequence[str], rows: int) -> None:
        if not self._walks:
            raise gymnasium.error.ResetNeeded("no walks are under way: call reset before step")
        check_answers(actions, rows)
