"""The engine protocol: requests in, completions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answer tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


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


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request, in request order."""

    token_ids: list[int]
    """Drawn tokens, the stop token included if one was drawn."""
    logprobs: list[float]
    """Float32 natural-log probability of each token under the plain (temperature 1, unfiltered) distribution."""
    sampled_logprobs: list[float]
    """The same under the distribution it was drawn from; 0 where the choice was greedy."""
    stopped: bool


@dataclass(slots=True)
class EngineCounters:
    """Tokens the engine pushed through the model since it was made."""

    prefill_tokens: int = 0
    """Context tokens encoded, re-encoded history included, padding excluded."""
    decode_tokens: int = 0
    executed_tokens: int = 0
    """Every position computed, padding and finished rows included."""


class Engine(Protocol):
    """Generates with the trainer's own weights."""

    counters: EngineCounters

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        """Answer each request. Which requests share the call does not change the uniforms any of them draws."""
