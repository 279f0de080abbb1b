"""Dialogues between an engine and a task's environment: token in, token out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

from sftrl_fast.core import Episode, Group, Turn, UserError, Verdict
from sftrl_fast.rollout.request import Completion, Engine, Request, RequestKey, SamplingParams


class ChatLike(Protocol):
    """What is asked of :class:`sftrl_fast.models.chat.Chat`."""

    def prompt_ids(self, user_text: str) -> list[int]: ...

    def reply_ids(self, user_text: str, *, stopped: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the environments said about one answer of each of n rows."""

    observations: Sequence[str]
    rewards: npt.NDArray[np.floating]
    done: npt.NDArray[np.bool_]
    success: npt.NDArray[np.bool_]
    outcome: npt.NDArray[np.integer]


class RowEnvs(Protocol):
    """n environments of one task, stepped together."""

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[str]:
        """Deal item ``indices[i]`` in row i; the first user messages."""

    def step(self, answers: Sequence[str]) -> Judgement:
        """Judge an answer a row; rows that are over get the empty string and mean nothing any more."""

    def close(self) -> None: ...


def run_episodes(
    engine: Engine,
    chat: ChatLike,
    env_id: str,
    items: Sequence[int],
    *,
    group_size: int,
    params: SamplingParams,
    seed: int,
    step: int,
    env_kwargs: Mapping[str, Any],
    max_context: int | None = None,
) -> list[Group]:
    """Answer each item ``group_size`` times, over as many turns as its environment allows.

    Returns a :class:`Group` an item, in item order. Random numbers are keyed (``seed``, ``step``, item index,
    place in the group, turn), so neither the order nor the company of the items changes an answer.
    ``max_context`` is the number of positions of the model: a dialogue that leaves no room for another
    ``params.max_new_tokens`` ends there, unsuccessful; a first prompt that leaves none raises
    :class:`UserError` before anything is generated. So do an unknown environment and a bad ``group_size``.
    """
    if group_size < 1:
        raise UserError(f"group_size is {group_size}; needed: at least 1")
    if not items:
        return []
    indices = np.repeat(np.asarray(items, dtype=np.int64), group_size)
    limit = None if max_context is None else max_context - params.max_new_tokens
    envs = make_envs(env_id, len(indices), env_kwargs)
    try:
        dialogues = _start(chat, envs.reset(indices), indices)
        _check_prompts(dialogues, limit, params)
        turn = 0
        while live := [row for row, dialogue in enumerate(dialogues) if not dialogue.over]:
            requests = [dialogues[row].request(seed, step, turn) for row in live]
            completions = engine.generate(requests, params)
            answers = [""] * len(dialogues)
            for row, completion in zip(live, completions, strict=True):
                answers[row] = chat.decode(completion.token_ids)
            judged = envs.step(answers)
            replies = _Replies(chat)
            for row, completion in zip(live, completions, strict=True):
                dialogues[row].record(completion, answers[row], judged, row, replies, limit)
            turn += 1
    finally:
        envs.close()
    episodes = iter(dialogue.episode for dialogue in dialogues)
    return [Group(int(item), [next(episodes) for _ in range(group_size)]) for item in items]


class _Replies:
    """``chat.reply_ids``, rendered once for all rows that got the same message this turn."""

    def __init__(self, chat: ChatLike) -> None:
        self._chat = chat
        self._known: dict[tuple[str, bool], list[int]] = {}

    def ids(self, message: str, stopped: bool) -> list[int]:
        key = (message, stopped)
        if key not in self._known:
            self._known[key] = self._chat.reply_ids(message, stopped=stopped)
        return list(self._known[key])


@dataclass(slots=True)
class _Dialogue:
    """One row: its episode so far, every token so far, and the tokens added since the last answer."""

    episode: Episode
    context: list[int]
    added: list[int]
    over: bool = False

    def request(self, seed: int, step: int, turn: int) -> Request:
        key = RequestKey(seed, step, prompt=self.episode.index, sample=self.episode.sample, turn=turn)
        return Request(list(self.context), key)

    def record(
        self,
        completion: Completion,
        text: str,
        judged: Judgement,
        row: int,
        replies: _Replies,
        limit: int | None,
    ) -> None:
        """Append the turn, and the user's next message if there is one and it fits."""
        done = bool(judged.done[row])
        message = "" if done else judged.observations[row]
        verdict = Verdict(
            float(judged.rewards[row]), int(judged.outcome[row]), bool(judged.success[row]), message
        )
        self.episode.turns.append(
            Turn(
                self.added,
                completion.token_ids,
                completion.sampled_logprobs,
                text,
                completion.stopped,
                verdict,
            )
        )
        self.over = done
        if done:
            return
        self.added = replies.ids(message, completion.stopped)
        self.context += completion.token_ids + self.added
        self.over = limit is not None and len(self.context) > limit


def _start(chat: ChatLike, messages: Sequence[str], indices: npt.NDArray[np.int64]) -> list[_Dialogue]:
    prompts = {message: chat.prompt_ids(message) for message in dict.fromkeys(messages)}
    # An item that stands twice among the items goes on counting, or both groups would draw the same answers.
    samples: Counter[int] = Counter()
    dialogues = []
    for index, message in zip(indices.tolist(), messages, strict=True):
        episode = Episode(index, samples[index])
        samples[index] += 1
        dialogues.append(_Dialogue(episode, list(prompts[message]), list(prompts[message])))
    return dialogues


def _check_prompts(dialogues: Iterable[_Dialogue], limit: int | None, params: SamplingParams) -> None:
    longest = max(dialogues, key=lambda dialogue: len(dialogue.context))
    if limit is not None and len(longest.context) > limit:
        raise UserError(
            f"max_context is {limit + params.max_new_tokens}; the prompt of item {longest.episode.index} has "
            f"{len(longest.context)} tokens and max_new_tokens is {params.max_new_tokens}: needed at least "
            f"{len(longest.context) + params.max_new_tokens}"
        )


def make_envs(env_id: str, rows: int, env_kwargs: Mapping[str, Any]) -> RowEnvs:
    """The task's own vector form where it is registered with one, else ``rows`` single environments."""
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"env_id is {env_id!r}; needed: a registered Gymnasium id ({error})") from error
    if spec.vector_entry_point is not None:
        return _VectorEnvs(gymnasium.make_vec(env_id, num_envs=rows, **env_kwargs))
    return _SingleEnvs([gymnasium.make(env_id, **env_kwargs) for _ in range(rows)])


class _VectorEnvs:
    def __init__(self, env: Any) -> None:
        self._env = env

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[str]:
        observations, _ = self._env.reset(options={"index": indices})
        return list(observations)

    def step(self, answers: Sequence[str]) -> Judgement:
        observations, rewards, terminated, truncated, infos = self._env.step(answers)
        done = np.asarray(terminated) | np.asarray(truncated)
        return Judgement(
            observations,
            np.asarray(rewards),
            done,
            np.asarray(infos["success"]),
            np.asarray(infos["outcome"]),
        )

    def close(self) -> None:
        self._env.close()


class _SingleEnvs:
    """A list of ordinary environments behind the same interface; a row that is over is not stepped again."""

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]]) -> None:
        self._envs = envs
        self._done = np.zeros(len(envs), dtype=bool)

    def reset(self, indices: npt.NDArray[np.int64]) -> Sequence[str]:
        self._done[:] = False
        resets = zip(self._envs, indices, strict=True)
        return [str(env.reset(options={"index": int(index)})[0]) for env, index in resets]

    def step(self, answers: Sequence[str]) -> Judgement:
        rows = len(self._envs)
        observations = [""] * rows
        rewards = np.zeros(rows)
        success = np.zeros(rows, dtype=bool)
        outcome = np.zeros(rows, dtype=np.int64)
        for row in np.flatnonzero(~self._done).tolist():
            observation, reward, terminated, truncated, info = self._envs[row].step(answers[row])
            observations[row], rewards[row] = str(observation), float(reward)
            success[row], outcome[row] = info["success"], info["outcome"]
            self._done[row] = terminated or truncated
        return Judgement(observations, rewards, self._done.copy(), success, outcome)

    def close(self) -> None:
        for env in self._envs:
            env.close()
