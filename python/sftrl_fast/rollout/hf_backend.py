"""The engine protocol over transformers' ``model.generate``: any model it runs, at its speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sftrl_fast.core import UserError
from sftrl_fast.ops.sample import check_sampling, sample, uniforms
from sftrl_fast.rollout.request import Completion, Engine, EngineCounters, Request, SamplingParams


class HFBackend(Engine):
    """Generates in length-sorted batches with left padding; the trainer's own module, no copy of the weights.

    ``max_sequences`` bounds the rows of a batch, and so the key/value cache; ``pad_id`` may be any token, for
    nothing attends to it. Tokens are drawn by :func:`sftrl_fast.ops.sample.sample` with the uniforms of the
    request's key, so neighbours change an answer only where rounding of the logits decides.
    """

    def __init__(
        self, model: PreTrainedModel, stop_ids: frozenset[int], pad_id: int, *, max_sequences: int
    ) -> None:
        if max_sequences < 1:
            raise UserError(f"max_sequences is {max_sequences}; needed: at least 1")
        vocabulary = int(cast(Tensor, model.get_input_embeddings().weight).shape[0])
        for token in (*stop_ids, pad_id):
            if not 0 <= token < vocabulary:
                raise UserError(f"stop_ids or pad_id hold {token}; needed: token ids in [0, {vocabulary})")
        self.counters = EngineCounters()
        self._model = model
        self._stop_ids = np.array(sorted(stop_ids), dtype=np.int64)
        self._pad_id = pad_id
        self._max_sequences = max_sequences
        self._max_context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        """Answer each request, in request order.

        Raises :class:`UserError` for settings out of range, an empty context, a context that leaves no room
        for ``max_new_tokens`` within the model's positions, and logits that are not finite.
        """
        self._check(requests, params)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].context))
        completions: dict[int, Completion] = {}
        with _generating(self._model):
            for start in range(0, len(order), self._max_sequences):
                batch = order[start : start + self._max_sequences]
                answers = self._run([requests[i] for i in batch], params)
                completions.update(zip(batch, answers, strict=True))
        return [completions[i] for i in range(len(requests))]

    def _check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        check_sampling(params.temperature, params.top_k, params.top_p)
        if params.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {params.max_new_tokens}; needed: at least 1")
        for request in requests:
            length = len(request.context)
            if length == 0:
                raise UserError("context is empty; needed: at least one token")
            if self._max_context is not None and length + params.max_new_tokens > self._max_context:
                raise UserError(
                    f"context of {length} tokens and max_new_tokens {params.max_new_tokens} exceed the "
                    f"{self._max_context} positions of the model"
                )

    def _run(self, requests: list[Request], params: SamplingParams) -> list[Completion]:
        rows, width = len(requests), len(requests[-1].context)
        ids = np.full((rows, width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, width - len(request.context) :] = request.context
            mask[i, width - len(request.context) :] = 1
        device = self._model.device
        draw = _KeyedDraw(requests, params, width, device)
        self._model.generate(  # type: ignore[operator]
            inputs=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            past_key_values=_reserved_cache(self._model, width + params.max_new_tokens),
            logits_processor=LogitsProcessorList([draw]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=self._stop_ids.tolist() or None,
                pad_token_id=self._pad_id,
                use_cache=True,
            ),
        )
        completions = self._cut(draw)
        self.counters.prefill_tokens += int(mask.sum())
        self.counters.decode_tokens += sum(len(completion.token_ids) for completion in completions)
        self.counters.executed_tokens += rows * (width + draw.steps - 1)
        return completions

    def _cut(self, draw: _KeyedDraw) -> list[Completion]:
        """End each row of the recorded draws at its first stop token, which it keeps."""
        tokens, plain, sampled = (record[: draw.steps].T.cpu().numpy() for record in draw.records)
        stops = np.isin(tokens, self._stop_ids)
        stopped = stops.any(axis=1)
        lengths = np.where(stopped, stops.argmax(axis=1) + 1, draw.steps)
        values = (tokens, plain, sampled, lengths, stopped)
        rows = zip(*(array.tolist() for array in values), strict=True)
        return [Completion(t[:n], p[:n], s[:n], ended) for t, p, s, n, ended in rows]


class _KeyedDraw(LogitsProcessor):
    """Draws each row's token itself and leaves ``generate``, which runs greedily, no other choice."""

    def __init__(
        self, requests: list[Request], params: SamplingParams, prompt_width: int, device: torch.device
    ) -> None:
        keys = [request.key for request in requests]
        seed, step, prompt, member, turn = (
            np.array([getattr(key, name) for key in keys], dtype=np.uint64)
            for name in ("seed", "step", "prompt", "sample", "turn")
        )
        position = np.arange(params.max_new_tokens)[:, None]
        self._uniforms = torch.from_numpy(uniforms(seed, step, prompt, member, turn, position)).to(device)
        self._params = params
        self._prompt_width = prompt_width
        shape = (params.max_new_tokens, len(requests))
        self.records: tuple[Tensor, Tensor, Tensor] = (
            torch.empty(shape, dtype=torch.int64, device=device),
            torch.empty(shape, device=device),
            torch.empty(shape, device=device),
        )
        """Tokens and their plain and sampled log-probabilities, ``[position, row]``."""
        self.steps = 0
        """Positions drawn so far."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._prompt_width
        params = self._params
        drawn = sample(
            scores,
            self._uniforms[position],
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
        )
        for record, values in zip(self.records, drawn, strict=True):
            record[position] = values
        self.steps = position + 1
        # generate hands over a float32 copy of the logits made for the processors, so it may be overwritten.
        return scores.fill_(float("-inf")).scatter_(1, drawn[0].unsqueeze(1), 0.0)


class _ReservedLayer(DynamicLayer):
    """Keys and values of one layer in buffers made once at full length; transformers' own layer copies both
    whole at every token, which took 70 % of a decode step on a CPU."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, _ = key_states.shape
            keys = key_states.new_empty(rows, heads, self._capacity, key_states.shape[-1])
            values = value_states.new_empty(rows, heads, self._capacity, value_states.shape[-1])
            self._buffers = keys, values
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values


def _reserved_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """The model's own cache with its plain layers exchanged; sliding-window and other layers stay."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [
        _ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


@contextmanager
def _generating(model: Any) -> Iterator[None]:
    """Evaluation mode, and none of the generation settings that came with the weights: ``generate`` would
    merge them (a repetition penalty, say) into those of the request."""
    training, config = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            yield
    finally:
        model.generation_config = config
        model.train(training)
