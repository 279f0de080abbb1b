"""A task's environments behind one door: answers go in as they end, verdicts come out as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

from sftrl_fast.core import Observation, UserError

WORKERS = 8
"""Threads that step environments: they wait more than they compute, and the engine's threads need the cores."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the environments said about answers of ``rows``, an entry for each of them."""

    rows: Sequence[int]
    observations: Sequence[Observation]
    rewards: npt.NDArray[np.floating]
    done: npt.NDArray[np.bool_]
    success: npt.NDArray[np.bool_]
    outcome: npt.NDArray[np.integer]
    right: npt.NDArray[np.bool_]
    first_try: npt.NDArray[np.bool_] | None
    """None where the environment does not say: an item is one decision there."""
    recognised: npt.NDArray[np.bool_] | None = None
    """None where the environment does not judge reading apart."""
    parts: Mapping[str, npt.NDArray[np.floating]] = field(default_factory=dict)
    """The environment's ``reward_parts``."""


class RowEnvs(Protocol):
    """n environments of one task, a row each."""

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[Observation]:
        """Deal item ``indices[i]`` in row i; the first user messages."""

    def judgements(self, rows: Sequence[int], answers: Sequence[str]) -> list[Callable[[], Judgement]]:
        """Calls that judge these answers, and earlier ones that were held back; they may run at the same time."""

    def leave(self, rows: Sequence[int]) -> list[Callable[[], Judgement]]:  # noqa: ARG002  (others need them)
        """Expect no more answers of these rows; calls that judge what was held back for them."""
        return []

    def close(self) -> None: ...


class Judge:
    """Steps environments in a few threads, so that a slow one holds up nobody else.

    An environment is stepped by one thread at a time, not always the same one. What one raises, :meth:`verdicts`
    raises.
    """

    def __init__(self, envs: RowEnvs) -> None:
        self._envs = envs
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="judge")
        self._ready: SimpleQueue[Future[Judgement]] = SimpleQueue()

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[Observation]:
        """Deal item ``indices[i]`` in row i; the first user messages."""
        return self._envs.reset(indices)

    def judge(self, rows: Sequence[int], answers: Sequence[str]) -> None:
        """Have the answers of these rows judged; returns at once."""
        if rows:
            for call in self._envs.judgements(rows, answers):
                self._pool.submit(call).add_done_callback(self._ready.put)

    def leave(self, rows: Sequence[int]) -> None:
        """These rows will not be answered again, though their environments have not ended."""
        for call in self._envs.leave(rows) if rows else ():
            self._pool.submit(call).add_done_callback(self._ready.put)

    def verdicts(self, *, wait: bool) -> list[Judgement]:
        """Those that are ready; with ``wait``, which some answer must justify, at least one."""
        found: list[Judgement] = []
        try:
            while True:
                found.append(self._ready.get(block=wait and not found).result())
        except Empty:
            return found

    def close(self) -> None:
        """Wait for the steps under way and close the environments."""
        self._pool.shutdown(cancel_futures=True)
        self._envs.close()


def make_envs(env_id: str, rows: int, env_kwargs: Mapping[str, Any]) -> RowEnvs:
    """The task's own vector form where it is registered with one, else ``rows`` single environments.

    Gymnasium's vector ``step`` takes an answer for every row. A vector environment with a method
    ``step_rows(rows, answers)``, which does the same for some rows and returns their entries alone, judges answers as
    they end; another waits until every row that is not over has one.
    """
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"env_id is {env_id!r}; needed: a registered Gymnasium id ({error})") from error
    if spec.vector_entry_point is None:
        return _SingleEnvs([gymnasium.make(env_id, **env_kwargs) for _ in range(rows)])
    env = gymnasium.make_vec(env_id, num_envs=rows, **env_kwargs)
    return _RowwiseVector(env) if hasattr(env.unwrapped, "step_rows") else _WholeVector(env)


class _VectorEnvs(RowEnvs):
    def __init__(self, env: Any) -> None:
        self._env = env
        self._lock = Lock()

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[Observation]:
        observations, _ = self._env.reset(options={"index": indices})
        return [Observation.of(observation) for observation in observations]

    def close(self) -> None:
        self._env.close()


class _RowwiseVector(_VectorEnvs):
    def judgements(self, rows: Sequence[int], answers: Sequence[str]) -> list[Callable[[], Judgement]]:
        return [lambda: self._step(rows, answers)]

    def _step(self, rows: Sequence[int], answers: Sequence[str]) -> Judgement:
        with self._lock:
            return _judgement(rows, *self._env.unwrapped.step_rows(np.asarray(rows, dtype=np.int64), answers))


class _WholeVector(_VectorEnvs):
    """Rows that are over get the empty answer."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._live = np.ones(env.num_envs, dtype=bool)
        self._held: dict[int, str] = {}

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[Observation]:
        self._live[:] = True
        self._held.clear()
        return super().reset(indices)

    def judgements(self, rows: Sequence[int], answers: Sequence[str]) -> list[Callable[[], Judgement]]:
        self._held.update(zip(rows, answers, strict=True))
        return self._complete()

    def leave(self, rows: Sequence[int]) -> list[Callable[[], Judgement]]:
        with self._lock:
            self._live[list(rows)] = False
        return self._complete()

    def _complete(self) -> list[Callable[[], Judgement]]:
        """The step of all answers held, once every live row has one."""
        with self._lock:
            waiting = int(self._live.sum()) > len(self._held)
        if waiting or not self._held:
            return []
        held, self._held = self._held, {}
        return [lambda: self._step(held)]

    def _step(self, held: Mapping[int, str]) -> Judgement:
        with self._lock:
            everything = [held.get(row, "") for row in range(len(self._live))]
            judged = _judgement(range(len(self._live)), *self._env.step(everything))
            self._live &= ~judged.done
        rows = sorted(held)
        return Judgement(
            rows, [judged.observations[row] for row in rows], judged.rewards[rows], judged.done[rows],
            judged.success[rows], judged.outcome[rows], judged.right[rows],
            None if judged.first_try is None else judged.first_try[rows],
            None if judged.recognised is None else judged.recognised[rows],
            {name: values[rows] for name, values in judged.parts.items()},
        )  # fmt: skip


def _judgement(
    rows: Sequence[int],
    observations: Sequence[Any],
    rewards: Any,
    terminated: Any,
    truncated: Any,
    infos: Any,
) -> Judgement:
    return Judgement(
        rows, [Observation.of(observation) for observation in observations], np.asarray(rewards),
        np.asarray(terminated) | np.asarray(truncated), np.asarray(infos["success"]), np.asarray(infos["outcome"]),
        np.asarray(infos.get("right", infos["success"])),
        np.asarray(infos["first_try"]) if "first_try" in infos else None,
        np.asarray(infos["recognised"]) if "recognised" in infos else None,
        # Gymnasium puts a mask `_name` beside each array it gathers.
        {name: np.asarray(values) for name, values in infos.get("reward_parts", {}).items() if name[0] != "_"},
    )  # fmt: skip


class _SingleEnvs(RowEnvs):
    """Ordinary environments, each judged on its own."""

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]]) -> None:
        self._envs = envs

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[Observation]:
        resets = zip(self._envs, indices, strict=True)
        return [Observation.of(env.reset(options={"index": int(index)})[0]) for env, index in resets]

    def judgements(self, rows: Sequence[int], answers: Sequence[str]) -> list[Callable[[], Judgement]]:
        return [partial(self._step, row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _step(self, row: int, answer: str) -> Judgement:
        observation, reward, terminated, truncated, info = self._envs[row].step(answer)
        kept = ("success", "outcome", "right", "first_try", "recognised")
        one: dict[str, Any] = {key: [info[key]] for key in kept if key in info}
        one["reward_parts"] = {name: [value] for name, value in info.get("reward_parts", {}).items()}
        return _judgement([row], [observation], [float(reward)], [terminated], [truncated], one)

    def close(self) -> None:
        for env in self._envs:
            env.close()
