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
from sftrl_fast.models.vision import Generating, Vision
from sftrl_fast.models.weights import WeightsWatch
from sftrl_fast.ops.sample import sample
from sftrl_fast.rollout.request import (
    BatchEngine,
    Completion,
    Decode,
    Request,
    SamplingParams,
    check_keys,
    check_params,
    each,
    ends_with,
    key_uniforms,
)


class HFBackend(BatchEngine):
    """Generates in length-sorted batches with left padding; the trainer's own module, no copy of the weights.

    ``max_sequences`` bounds the rows of a batch, and so the key/value cache; ``pad_id`` may be any token, for
    nothing attends to it. Tokens are drawn by :func:`sftrl_fast.ops.sample.sample` with the uniforms of the
    request's key, so neighbours change an answer only where rounding of the logits decides. Nothing is kept for a
    session. Stop strings, for which ``decode`` is needed, cut an answer that was generated to its end. Requests with
    pictures, for which ``vision`` is needed, form batches of their own, each picture encoded once a batch.
    """

    name = "hf"

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: frozenset[int],
        pad_id: int,
        *,
        max_sequences: int,
        decode: Decode | None = None,
        vision: Vision | None = None,
    ) -> None:
        super().__init__()
        if max_sequences < 1:
            raise UserError(f"max_sequences is {max_sequences}; needed: at least 1")
        vocabulary = int(cast(Tensor, model.get_input_embeddings().weight).shape[0])
        for token in (*stop_ids, pad_id):
            if not 0 <= token < vocabulary:
                raise UserError(f"stop_ids or pad_id hold {token}; needed: token ids in [0, {vocabulary})")
        self._model, self._decode, self._vision = model, decode, vision
        self._watch = WeightsWatch(model)
        self._stop_ids = stop_ids
        self._pad_id = pad_id
        self._max_sequences = max_sequences
        self.max_context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def submit(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[int]:
        self._check(requests, each(params, len(requests)))
        return super().submit(requests, params)

    def generate(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Answer each request, in request order; those with equal settings go together.

        Raises :class:`UserError` for settings out of range, an empty context, a context that leaves no room
        for ``max_new_tokens`` within the model's positions, and logits that are not finite.
        """
        own = each(params, len(requests))
        self._check(requests, own)
        if requests:
            self._watch.changed(thorough=True)
            self.weights_version = self._watch.version
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].context))
        completions: dict[int, Completion] = {}
        with _generating(self._model):
            for settings, shown in dict.fromkeys((own[i], bool(requests[i].images)) for i in order):
                same = [i for i in order if own[i] == settings and bool(requests[i].images) == shown]
                for start in range(0, len(same), self._max_sequences):
                    batch = same[start : start + self._max_sequences]
                    answers = self._run([requests[i] for i in batch], settings)
                    completions.update(zip(batch, answers, strict=True))
        return [completions[i] for i in range(len(requests))]

    def _check(self, requests: Sequence[Request], params: Sequence[SamplingParams]) -> None:
        for settings in dict.fromkeys(params):
            check_params(settings, self._decode)
        check_keys(requests)
        for request, own in zip(requests, params, strict=True):
            if request.images and self._vision is None:
                raise UserError("images: this model sees no pictures; needed: a vision-language model")
            length = len(request.context)
            if length == 0:
                raise UserError("context is empty; needed: at least one token")
            if self.max_context is not None and length + own.max_new_tokens > self.max_context:
                raise UserError(
                    f"context of {length} tokens and max_new_tokens {own.max_new_tokens} exceed the "
                    f"{self.max_context} positions of the model"
                )

    def _run(self, requests: list[Request], params: SamplingParams) -> list[Completion]:
        rows, width = len(requests), len(requests[-1].context)
        ids = np.full((rows, width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, width - len(request.context) :] = request.context
            mask[i, width - len(request.context) :] = 1
        device = self._model.device
        tokens = torch.from_numpy(ids)
        seen = Generating()
        if self._vision is not None and requests[0].images:
            seen = self._vision.generating(self._model, tokens, [request.images for request in requests])
        undrawn = () if self._vision is None else self._vision.undrawn
        draw = _KeyedDraw(requests, params, width, device, undrawn)
        self._model.generate(  # type: ignore[operator]
            inputs=tokens.to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            past_key_values=_reserved_cache(self._model, width + params.max_new_tokens, seen),
            logits_processor=LogitsProcessorList([draw]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=sorted(self._stop_ids | params.stop_ids) or None,
                pad_token_id=self._pad_id,
                use_cache=True,
            ),
            **seen.arguments,
        )
        completions = self._cut(draw, params)
        self.counters.prefill_tokens += int(mask.sum())
        self.counters.decode_tokens += sum(len(completion.token_ids) for completion in completions)
        self.counters.executed_tokens += rows * (width + draw.steps - 1)
        return completions

    def _cut(self, draw: _KeyedDraw, params: SamplingParams) -> list[Completion]:
        """End each row of the recorded draws where it stops first; what ends it is kept."""
        records = (record[: draw.steps].T.tolist() for record in draw.records)
        completions = []
        for tokens, plain, sampled in zip(*records, strict=True):
            length = self._end(tokens, params)
            n = length or len(tokens)
            completions.append(
                Completion(tokens[:n], plain[:n], sampled[:n], length > 0, self.weights_version)
            )
        return completions

    def _end(self, tokens: list[int], params: SamplingParams) -> int:
        """Tokens up to and with the one that stops the answer, 0 if none does."""
        stops = self._stop_ids | params.stop_ids
        length = next((n for n, token in enumerate(tokens, 1) if token in stops), 0)
        if params.stop_strings:
            ends = (
                n for n in range(1, length or len(tokens) + 1) if ends_with(tokens[:n], params, self._decode)
            )
            length = next(ends, length)
        return length


class _KeyedDraw(LogitsProcessor):
    """Draws each row's token itself and leaves ``generate``, which runs greedily, no other choice."""

    def __init__(
        self,
        requests: list[Request],
        params: SamplingParams,
        prompt_width: int,
        device: torch.device,
        undrawn: Sequence[int],
    ) -> None:
        """``undrawn`` tokens have no part in either distribution."""
        position = np.arange(params.max_new_tokens)[:, None]
        self._uniforms = torch.from_numpy(key_uniforms(requests, position)).to(device)
        self._params, self._undrawn = params, list(undrawn)
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
        if self._undrawn:
            scores[:, self._undrawn] = float("-inf")
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


class _FullLayer(DynamicLayer):
    """Keys and values that are there from the start and stay as they are."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def _reserved_cache(model: PreTrainedModel, capacity: int, seen: Generating) -> DynamicCache:
    """The model's own cache with its plain layers exchanged; sliding-window and other layers stay."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [
        _ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    for place, (keys, values) in seen.cached.items():
        cache.layers[place] = _FullLayer(keys, values)
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
