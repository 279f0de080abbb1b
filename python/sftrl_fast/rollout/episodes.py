"""Dialogues between an engine and a task's environment: token in, token out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sftrl_fast.core import Episode, Group, Image, Observation, Turn, UserError, Verdict
from sftrl_fast.rollout.judge import Judge, Judgement, make_envs
from sftrl_fast.rollout.request import Completion, Engine, Request, RequestKey, SamplingParams


class ChatLike(Protocol):
    """What is asked of :class:`sftrl_fast.models.chat.Chat`."""

    stop_ids: frozenset[int]

    def prompt_ids(self, user_text: str, image: Image | None = None) -> list[int]: ...

    def reply_ids(self, user_text: str, *, stopped: bool, image: Image | None = None) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


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
    :class:`UserError` before anything is generated. So do an unknown environment, a bad ``group_size`` and an engine
    with other requests under way; a dialogue that outgrows the engine's cache raises when it does.
    """
    if group_size < 1:
        raise UserError(f"group_size is {group_size}; needed: at least 1")
    if engine.busy:
        raise UserError("engine has requests under way, whose answers would be lost; needed: an idle one")
    if not items:
        return []
    indices = np.repeat(np.asarray(items, dtype=np.int64), group_size)
    limits = [limit for limit in (max_context, engine.max_context) if limit is not None]
    limit = min(limits) - params.max_new_tokens if limits else None
    judge = Judge(make_envs(env_id, len(indices), env_kwargs))
    try:
        album = _Album()
        dialogues = _start(chat, album, judge.reset(indices), indices)
        _check_prompts(dialogues, limit, params)
        _Talk(engine, judge, _Replies(chat, album), dialogues, params, (seed, step), limit).run()
    finally:
        judge.close()
    episodes = iter(dialogue.episode for dialogue in dialogues)
    return [Group(int(item), [next(episodes) for _ in range(group_size)]) for item in items]


class _Talk:
    """All dialogues of a call under way: an answer goes to its environment when it ends, and the next question to the
    engine when the environment has spoken, whatever the others do."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        replies: _Replies,
        dialogues: list[_Dialogue],
        params: SamplingParams,
        key: tuple[int, int],
        limit: int | None,
    ) -> None:
        self._engine, self._judge, self._replies = engine, judge, replies
        self._dialogues, self._params, self._key, self._limit = dialogues, params, key, limit
        self._open: dict[int, int] = {}
        """Row of each ticket whose answer is not there yet."""
        self._answers: dict[int, tuple[Completion, str]] = {}
        """By row, those that are with the environments."""
        self._name = object()
        """Tells this call's sessions from others'."""

    def run(self) -> None:
        """Talk until every dialogue is over."""
        asking = list(range(len(self._dialogues)))
        try:
            while asking or self._open or self._answers:
                # An engine that only knows whole batches waits until every environment has spoken.
                if self._engine.streams or not self._answers:
                    self._ask(asking)
                    asking = []
                    self._take(self._engine.step())
                idle = not self._open or not self._engine.streams
                asking = sorted(asking + self._hear(wait=idle and bool(self._answers)))
        finally:
            self._engine.cancel(self._open)
            for row in range(len(self._dialogues)):
                self._engine.close((self._name, row))

    def _ask(self, rows: list[int]) -> None:
        requests = [self._dialogues[row].request(*self._key, session=(self._name, row)) for row in rows]
        self._open.update(zip(self._engine.submit(requests, self._params), rows, strict=True))

    def _take(self, answered: list[tuple[int, Completion]]) -> None:
        """Hand the answers of one step to the environments, in row order."""
        ended = sorted((self._open.pop(ticket), completion) for ticket, completion in answered)
        for row, completion in ended:
            self._answers[row] = completion, self._replies.chat.decode(completion.token_ids)
        rows = [row for row, _ in ended]
        self._judge.judge(rows, [self._answers[row][1] for row in rows])

    def _hear(self, *, wait: bool) -> list[int]:
        """Write down what the environments said; the rows that go on."""
        going_on, left = [], []
        for judged in self._judge.verdicts(wait=wait):
            for place, row in enumerate(judged.rows):
                completion, text = self._answers.pop(row)
                dialogue = self._dialogues[row]
                dialogue.record(completion, text, judged, place, self._replies, self._limit)
                if dialogue.over:
                    self._engine.close((self._name, row))
                else:
                    going_on.append(row)
                if dialogue.over and not judged.done[place]:
                    left.append(row)
        self._judge.leave(left)
        return going_on


class _Album:
    """One object for equal pictures, whichever environment drew them: what is shown to a group is encoded once."""

    def __init__(self) -> None:
        self._pictures: dict[int, Image] = {}
        self._own: set[int] = set()
        """Identities of what ``_pictures`` holds, so that they are known without being read."""

    def one(self, image: Image | None) -> Image | None:
        if image is None or id(image) in self._own:
            return image
        key = hash((image.shape, image.tobytes()))
        known = self._pictures.get(key)
        if known is not None and np.array_equal(known, image):
            return known
        self._pictures[key] = image
        self._own = {id(picture) for picture in self._pictures.values()}
        return image


class _Replies:
    """``chat.reply_ids``, rendered once for all rows that got the same message without a picture."""

    def __init__(self, chat: ChatLike, album: _Album) -> None:
        self.chat, self.album = chat, album
        self._known: dict[tuple[str, bool], list[int]] = {}

    def ids(self, message: str, image: Image | None, answer: Sequence[int]) -> list[int]:
        # Asked of the tokens: what ended at a request's own stop token or string still lacks the template's.
        stopped = answer[-1] in self.chat.stop_ids
        if image is not None:
            return self.chat.reply_ids(message, stopped=stopped, image=image)
        key = (message, stopped)
        if key not in self._known:
            self._known[key] = self.chat.reply_ids(message, stopped=stopped)
        return list(self._known[key])


@dataclass(slots=True)
class _Dialogue:
    """One row: its episode so far, every token so far, and the tokens added since the last answer."""

    episode: Episode
    context: list[int]
    added: list[int]
    images: list[Image]
    """Every picture so far."""
    shown: Image | None
    """The one that came with ``added``."""
    over: bool = False

    def request(self, seed: int, step: int, session: Hashable) -> Request:
        episode = self.episode
        key = RequestKey(seed, step, prompt=episode.index, sample=episode.sample, turn=len(episode.turns))
        return Request(list(self.context), key, session, tuple(self.images))

    def record(
        self,
        completion: Completion,
        text: str,
        judged: Judgement,
        place: int,
        replies: _Replies,
        limit: int | None,
    ) -> None:
        """Append the turn, and the user's next message if there is one and it fits."""
        done = bool(judged.done[place])
        observation = Observation("") if done else judged.observations[place]
        first = judged.first_try
        verdict = Verdict(
            float(judged.rewards[place]), int(judged.outcome[place]), bool(judged.success[place]), observation.text,
            right=bool(judged.right[place]),
            first_try=not self.episode.turns if first is None else bool(first[place]),
            recognised=None if judged.recognised is None else bool(judged.recognised[place]),
            parts={name: float(values[place]) for name, values in judged.parts.items()},
        )  # fmt: skip
        self.episode.turns.append(
            Turn(
                self.added,
                completion.token_ids,
                completion.sampled_logprobs,
                text,
                completion.stopped,
                verdict,
                self.shown,
            )
        )
        self.over = done
        if done:
            return
        image = replies.album.one(observation.image)
        self.shown = None if self.images and image is self.images[-1] else image
        if self.shown is not None:
            self.images.append(self.shown)
        self.added = replies.ids(observation.text, self.shown, completion.token_ids)
        self.context += completion.token_ids + self.added
        self.over = limit is not None and len(self.context) > limit


def _start(
    chat: ChatLike, album: _Album, messages: Sequence[Observation], indices: npt.NDArray[np.int64]
) -> list[_Dialogue]:
    prompts: dict[tuple[str, int], list[int]] = {}
    # An item that stands twice among the items goes on counting, or both groups would draw the same answers.
    samples: Counter[int] = Counter()
    dialogues = []
    for index, message in zip(indices.tolist(), messages, strict=True):
        episode = Episode(index, samples[index])
        samples[index] += 1
        image = album.one(message.image)
        key = (message.text, id(image))
        if key not in prompts:
            prompts[key] = chat.prompt_ids(message.text, image)
        ids = prompts[key]
        dialogues.append(_Dialogue(episode, list(ids), list(ids), [] if image is None else [image], image))
    return dialogues


def _check_prompts(dialogues: Iterable[_Dialogue], limit: int | None, params: SamplingParams) -> None:
    longest = max(dialogues, key=lambda dialogue: len(dialogue.context))
    if limit is not None and len(longest.context) > limit:
        raise UserError(
            f"max_context is {limit + params.max_new_tokens}; the prompt of item {longest.episode.index} has "
            f"{len(longest.context)} tokens and max_new_tokens is {params.max_new_tokens}: needed at least "
            f"{len(longest.context) + params.max_new_tokens}"
        )
