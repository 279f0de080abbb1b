"""The engine protocol: requests in, completions out, at once or as a stream."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sftrl_fast.core import Image, UserError
from sftrl_fast.ops.sample import check_sampling, uniforms

Decode = Callable[[Sequence[int]], str]
"""Text of tokens."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answer tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer, beside the engine's own."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer: with the token that completes one of them, which is kept."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Names one answer for the counter-based random numbers: the same key draws the same uniforms in any batch."""

    seed: int
    step: int
    prompt: int
    sample: int
    turn: int


@dataclass(frozen=True, slots=True)
class Request:
    """``context`` holds every token so far: prompt, earlier answers as sampled, verifier's words."""

    context: list[int]
    key: RequestKey
    session: Hashable = None
    """Names the dialogue. An engine may keep what it computed for the last request of a session, so that the next
    one costs only what it adds; None keeps nothing. It never changes an answer."""
    images: tuple[Image, ...] = ()
    """The pictures that ``context`` shows, in the order of their tokens."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request."""

    token_ids: list[int]
    """Drawn tokens, the stop token included if one was drawn."""
    logprobs: list[float]
    """Float32 natural-log probability of each token under the plain (temperature 1, unfiltered) distribution."""
    sampled_logprobs: list[float]
    """The same under the distribution it was drawn from; 0 where the choice was greedy."""
    stopped: bool
    """True if a stop token or a stop string ended the answer, False if the length limit did."""
    weights_version: int = 0
    """The engine's ``weights_version`` when every one of these tokens was drawn."""


@dataclass(slots=True)
class EngineCounters:
    """What the engine did since it was made. Times are seconds of wall clock."""

    prefill_tokens: int = 0
    """Context tokens encoded, re-encoded history included, padding excluded."""
    decode_tokens: int = 0
    executed_tokens: int = 0
    """Every position computed, padding and finished rows included."""
    cached_tokens: int = 0
    """Context tokens that were not encoded, since their keys and values were there: of a group's shared prompt, or
    of a session's earlier turns."""
    pictures: int = 0
    """Pictures that went through the vision tower."""
    picture_seconds: float = 0.0
    """How long that took; part of the model's time."""
    evictions: int = 0
    """Times that a request or a session lost its keys and values to make room for others."""
    steps: int = 0
    model_seconds: float = 0.0
    sampling_seconds: float = 0.0
    scheduling_seconds: float = 0.0


class Engine(Protocol):
    """Generates with the trainer's own weights.

    ``submit``, ``step`` and ``cancel`` are the stream; ``generate`` is all three for one batch. One thread at a time.
    """

    name: str
    """What ``rollout.backend`` calls it."""
    counters: EngineCounters
    max_context: int | None
    """Tokens that a context and its answer may have together; None sets no limit."""
    streams: bool
    """Whether requests that come later join those under way. If not, ``step`` answers all that wait as one batch,
    and it pays to collect them first."""
    weights_version: int
    """Rises whenever the engine finds the model's weights changed."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or an answer was not taken yet."""

    def submit(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[int]:
        """Queue requests, with the same settings or each with its own; a ticket for each.

        Raises :class:`~sftrl_fast.core.UserError` for what cannot be answered; then none of them is queued.
        """

    def step(self) -> list[tuple[int, Completion]]:
        """Work a little; tickets and answers of the requests that ended. Nothing queued is nothing done."""

    def cancel(self, tickets: Iterable[int]) -> None:
        """Forget requests, queued or under way; unknown tickets and ended ones mean nothing."""

    def close(self, session: Hashable) -> None:
        """Forget what is kept for a session."""

    def generate(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Answer each request, in request order. Which requests share the call does not change the uniforms any
        of them draws."""


def each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    """``params`` for each of ``count`` requests."""
    return [params] * count if isinstance(params, SamplingParams) else list(params)


def check_params(params: SamplingParams, decode: Decode | None) -> None:
    """Raise :class:`UserError` for settings out of their range, or stop strings where nothing can ``decode``."""
    check_sampling(params.temperature, params.top_k, params.top_p)
    if params.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {params.max_new_tokens}; needed: at least 1")
    if "" in params.stop_strings:
        raise UserError("stop_strings holds an empty string; needed: texts of at least one character")
    if params.stop_strings and decode is None:
        raise UserError(f"stop_strings is {params.stop_strings}; needed: an engine that was given decode")


def check_keys(requests: Sequence[Request]) -> None:
    """Raise :class:`UserError` for a key with a field that the random numbers have no room for."""
    if requests:
        key_uniforms(requests, 0)


def key_uniforms(
    requests: Sequence[Request], position: npt.NDArray[np.integer] | int
) -> npt.NDArray[np.float32]:
    """The random numbers of each request at ``position``, which may broadcast against ``[len(requests)]``."""
    keys = [request.key for request in requests]
    seed, step, prompt, sample, turn = (
        np.array([getattr(key, name) for key in keys])
        for name in ("seed", "step", "prompt", "sample", "turn")
    )
    return uniforms(seed, step, prompt, sample, turn, position)


def ends_with(answer: Sequence[int], params: SamplingParams, decode: Decode | None) -> bool:
    """Whether the last token of ``answer`` is one of the request's own stop tokens or completes a stop string."""
    if answer[-1] in params.stop_ids:
        return True
    if not params.stop_strings or decode is None:
        return False
    # A token holds a byte at least, so that this many reach back to where the longest string may begin.
    reach = max(len(text.encode()) for text in params.stop_strings) + 4
    tail = decode(answer[-reach:])
    return any(text in tail for text in params.stop_strings)


@dataclass(slots=True)
class _Queued:
    ticket: int
    request: Request
    params: SamplingParams


class BatchEngine(Engine):
    """The stream over an engine that only knows whole batches: ``step`` hands all that wait to ``generate``."""

    name = "batch"
    streams = False
    max_context: int | None = None
    weights_version = 0

    def __init__(self) -> None:
        self.counters = EngineCounters()
        self._tickets = count()
        self._queue: deque[_Queued] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]: ...

    def submit(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[int]:
        queued = [
            _Queued(next(self._tickets), request, own)
            for request, own in zip(requests, each(params, len(requests)), strict=True)
        ]
        self._queue.extend(queued)
        return [entry.ticket for entry in queued]

    def step(self) -> list[tuple[int, Completion]]:
        batch = list(self._queue)
        self._queue.clear()
        if not batch:
            return []
        params = [entry.params for entry in batch]
        same = all(own is params[0] for own in params)
        completions = self.generate([entry.request for entry in batch], params[0] if same else params)
        return [(entry.ticket, answer) for entry, answer in zip(batch, completions, strict=True)]

    def cancel(self, tickets: Iterable[int]) -> None:
        dropped = set(tickets)
        self._queue = deque(entry for entry in self._queue if entry.ticket not in dropped)

    def close(self, session: Hashable) -> None:
        """Nothing is kept."""
