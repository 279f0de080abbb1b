"""The native engine: continuous batching over a paged cache, on the trainer's own weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sftrl_fast.core import UserError
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.vision import CrossVision
from sftrl_fast.ops.attention import Shown
from sftrl_fast.ops.sample import sample
from sftrl_fast.rollout.album import Album, Picture, Tokens
from sftrl_fast.rollout.kv_cache import PAGE_SIZE, KVCache
from sftrl_fast.rollout.plan import Pass, plan
from sftrl_fast.rollout.request import (
    Completion,
    Engine,
    EngineCounters,
    Request,
    SamplingParams,
    check_keys,
    check_params,
    each,
    ends_with,
)
from sftrl_fast.rollout.scheduler import Prefix, Scheduler
from sftrl_fast.rollout.tables import Draws, Slots

STEP_TOKENS = 1024
"""Tokens of a forward pass while contexts are being encoded: the weights are read once for all of them."""

SEQUENCE_TOKENS, CONTEXT_TOKENS = 512, 16384
"""Room by default: for each sequence, and for the longest context at least."""
MEMORY_SHARE = 0.5
"""Of an accelerator's free memory, what the cache may take by default; the rest is the trainer's."""

Answered = list[tuple[int, Completion]]


def default_cache(decoder: Decoder, max_sequences: int, picture_tokens: int = 0) -> int:
    """Tokens in the cache where nothing else is said: room for all sequences, within an accelerator's free memory.

    That memory also holds the pictures on show, ``picture_tokens`` positions each in the layers that see them: a
    sequence is reckoned to show one of its own.
    """
    tokens = max(SEQUENCE_TOKENS * max_sequences, min(decoder.max_context, CONTEXT_TOKENS) + 2 * PAGE_SIZE)
    if decoder.device.type != "cuda":
        return tokens  # a page's memory is taken when it is first written
    free, _ = torch.cuda.mem_get_info(decoder.device)
    layer_bytes = 2 * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
    sequence_bytes = layer_bytes * (SEQUENCE_TOKENS * decoder.layers + picture_tokens * decoder.cross_layers)
    return min(tokens, int(free * MEMORY_SHARE) * SEQUENCE_TOKENS // sequence_bytes)


class NativeEngine(Engine):
    """Runs the models that :meth:`Decoder.why_not` has nothing against; any number of requests at once.

    ``stop_ids`` end an answer. At most ``max_sequences`` requests run together, with keys and values of at most
    ``cache_tokens`` tokens (rounded up to pages; 0 takes :func:`default_cache`); others wait, and give way and come
    back where room is short.
    ``decode`` is needed for stop strings only, ``vision`` for pictures. On ``step_tokens`` see :data:`STEP_TOKENS`.

    Where the ops' implementations let no row's result depend on other rows (all of ``cpp`` do), a request's tokens and
    log-probabilities are the same bits in any company, under any budget.
    """

    name = "native"
    streams = True

    def __init__(
        self,
        model: nn.Module,
        stop_ids: frozenset[int],
        *,
        max_sequences: int,
        cache_tokens: int = 0,
        decode: Callable[[Sequence[int]], str] | None = None,
        vision: CrossVision | None = None,
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        for name, value, least in (("max_sequences", max_sequences, 1), ("cache_tokens", cache_tokens, 0)):
            if value < least:
                raise UserError(f"{name} is {value}; needed: at least {least}")
        self.decoder = decoder = Decoder(model)
        picture_tokens = 0 if vision is None else vision.picture_tokens
        cache_tokens = cache_tokens or default_cache(decoder, max_sequences, picture_tokens)
        self._stops = np.zeros(decoder.vocabulary, dtype=bool)
        for token in stop_ids:
            self._stops[self._checked_token("stop_ids", token)] = True
        self.counters = EngineCounters()
        self.cache = KVCache(
            layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim, tokens=cache_tokens,
            dtype=decoder.dtype, device=decoder.device,
        )  # fmt: skip
        self.scheduler = Scheduler(self.cache, max_sequences, self.counters)
        # A context is cut into a shared and an own part, each of which may leave a page unfilled.
        self._room = max(0, self.cache.pages - 1) * PAGE_SIZE
        self.max_context: int | None = decoder.max_context
        self._step_tokens, self._decode = step_tokens, decode
        self._album = None if vision is None else Album(model, vision, self.counters)
        self._hidden = torch.empty(8, decoder.hidden_size, dtype=decoder.dtype, device=decoder.device)
        """The last hidden state of each ready prompt, by row of the prefix table."""
        self.weights_version = decoder.weights_version
        self._tickets = count()
        self._kept: Answered = []
        self._fresh = True

    @property
    def busy(self) -> bool:
        return self.scheduler.busy or bool(self._kept)

    def submit(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[int]:
        own = each(params, len(requests))
        checked = [self._checked(request, settings) for request, settings in zip(requests, own, strict=True)]
        check_keys(requests)
        sessions = [request.session for request in requests if request.session is not None]
        if len(set(sessions)) < len(sessions):
            raise UserError("session: two of these requests have the same; needed: one at a time")
        for session in sessions:
            self.scheduler.check_session(session)
        if not self.scheduler.busy:
            self._fresh = True
        tickets = [next(self._tickets) for _ in requests]
        for ticket, request, settings, shown in zip(tickets, requests, own, checked, strict=True):
            self.scheduler.add(ticket, request, settings, *shown)
        return tickets

    def step(self) -> Answered:
        answered, self._kept = self._kept, []
        if not self.scheduler.busy:
            return answered
        try:
            return self._step(answered)
        except BaseException:
            # Rows may stand between being encoded and being drawn: what runs begins anew, with the same draws.
            self._kept = answered + self._kept
            self.scheduler.restart()
            raise

    def _step(self, answered: Answered) -> Answered:
        """One pass; adds what ended with it to ``answered``."""
        began = time.perf_counter()
        self.decoder.sync(thorough=self._fresh)
        if self.weights_version != self.decoder.weights_version:
            self.scheduler.restart()
            self.weights_version = self.decoder.weights_version
        self._fresh = False
        self.scheduler.admit()
        batch = plan(self.scheduler, self._step_tokens, self.decoder.device)
        planned = time.perf_counter()
        slots, hidden = self._forward(batch)
        logits = self.decoder.logits(hidden) if len(slots) else None
        ran = time.perf_counter()
        if logits is not None:
            answered += self._draw(slots, logits)
        counters = self.counters
        counters.steps += 1
        counters.scheduling_seconds += planned - began
        counters.model_seconds += ran - planned
        counters.sampling_seconds += time.perf_counter() - ran
        return answered

    def cancel(self, tickets: Iterable[int]) -> None:
        dropped = set(tickets)
        for ticket in dropped:
            self.scheduler.cancel(ticket)
        self._kept = [(ticket, completion) for ticket, completion in self._kept if ticket not in dropped]

    def close(self, session: Hashable) -> None:
        self.scheduler.close(session)

    def generate(
        self, requests: Sequence[Request], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Answer each request, in request order, along with what else is under way.

        Raises :class:`UserError` for settings out of range, an empty context, tokens outside the vocabulary, a
        context that leaves no room for ``max_new_tokens`` within the model's positions or the cache, a session
        with a request under way, and logits that are not finite.
        """
        tickets = self.submit(requests, params)
        open_tickets, done, others = set(tickets), {}, []
        try:
            while open_tickets:
                for ticket, completion in self.step():
                    if ticket in open_tickets:
                        open_tickets.remove(ticket)
                        done[ticket] = completion
                    else:
                        others.append((ticket, completion))
        finally:
            self.cancel(open_tickets)
            self._kept += others
        return [done[ticket] for ticket in tickets]

    def _forward(self, batch: Pass | None) -> tuple[Slots, Tensor]:
        """Run a pass; the rows that draw now and their hidden states."""
        scheduler, table = self.scheduler, self.scheduler.rows
        slots, hidden = np.empty(0, dtype=np.intp), self._hidden[:0]
        if batch is not None:
            hidden = self.decoder.hidden(
                batch.tokens, batch.positions, batch.places, batch.rows, self.cache.keys, self.cache.values,
                batch.wanted, self._shown(batch),
            )  # fmt: skip
            decoding = int(table.decoding[batch.slots].sum())
            self.counters.executed_tokens += len(batch.tokens)
            self.counters.prefill_tokens += len(batch.tokens) - decoding
            table.cached[batch.slots] += batch.count
            table.left[batch.slots] -= batch.count
            slots, hidden = self._split(batch.slots[batch.complete], hidden)
        if scheduler.first_draws:
            first = np.array(scheduler.first_draws, dtype=np.intp)
            scheduler.first_draws.clear()
            known = self._hidden[torch.from_numpy(table.prefix[first]).to(self._hidden.device)]
            slots, hidden = np.concatenate([slots, first]), torch.cat([hidden, known])
        return slots, hidden

    def _shown(self, batch: Pass) -> Shown | None:
        if self._album is None:
            return None
        return self._album.shown(batch.marks, self.weights_version, self.decoder.device)

    def _split(self, slots: Slots, hidden: Tensor) -> tuple[Slots, Tensor]:
        """Keep the hidden states of prompts that are complete now; what is left draws."""
        owners = self.scheduler.owner
        draws = [not isinstance(owners[slot], Prefix) for slot in slots.tolist()]
        if all(draws):
            return slots, hidden
        for place, (slot, drawing) in enumerate(zip(slots.tolist(), draws, strict=True)):
            if not drawing:
                row = self.scheduler.prefix_ready(slot)
                if row >= len(self._hidden):
                    self._hidden = torch.cat([self._hidden, torch.empty_like(self._hidden)])
                self._hidden[row] = hidden[place]
        chosen = np.flatnonzero(draws)
        return slots[chosen], hidden[torch.from_numpy(chosen).to(hidden.device)]

    def _draw(self, slots: Slots, logits: Tensor) -> Answered:
        """Draw the next token of each row; the requests that end with it."""
        table = self.scheduler.rows
        numbers = torch.from_numpy(table.next_uniforms(slots)).to(logits.device)
        kinds = table.kind[slots]
        tokens, plain, sampled = self._sample(logits, numbers, kinds)
        ended = table.record(slots, tokens, plain, sampled)
        stopped = self._stops[tokens]
        for place in np.flatnonzero(table.watched[slots] & ~stopped).tolist():
            stopped[place] = self._own_stop(int(slots[place]))
        self.counters.decode_tokens += len(slots)
        return [
            self._finish(int(slots[place]), bool(stopped[place]))
            for place in np.flatnonzero(ended | stopped).tolist()
        ]

    def _sample(self, logits: Tensor, numbers: Tensor, kinds: npt.NDArray[np.int32]) -> Draws:
        """One draw a row, each with its own settings."""
        settings = [*zip(*self.scheduler.kinds, strict=True)]
        if (kinds == kinds[0]).all():
            temperature, top_k, top_p = (column[kinds[0]] for column in settings)
            drawn = sample(logits, numbers, temperature=temperature, top_k=int(top_k), top_p=top_p)
        else:
            of_rows = (
                torch.from_numpy(np.array(column, dtype)[kinds]).to(logits.device)
                for column, dtype in zip(settings, (np.float32, np.int64, np.float32), strict=True)
            )
            temperatures, top_ks, top_ps = of_rows
            drawn = sample(logits, numbers, temperature=temperatures, top_k=top_ks, top_p=top_ps)
        return tuple(part.cpu().numpy() for part in drawn)

    def _own_stop(self, slot: int) -> bool:
        """Whether the row's answer ends with a stop token or string of its own."""
        sequence = self.scheduler.owner[slot]
        assert not isinstance(sequence, Prefix)
        params, answer = sequence.params, self.scheduler.rows.draws(slot)[0].tolist()
        return ends_with(answer, params, self._decode)

    def _finish(self, slot: int, stopped: bool) -> tuple[int, Completion]:
        tokens, plain, sampled = (part.tolist() for part in self.scheduler.rows.draws(slot))
        sequence = self.scheduler.finish(slot)
        return sequence.ticket, Completion(tokens, plain, sampled, stopped, self.weights_version)

    def _checked(self, request: Request, params: SamplingParams) -> tuple[Tokens, tuple[Picture, ...]]:
        """The context as an array, and its pictures; :class:`UserError` for a request that cannot be answered."""
        if request.images and self._album is None:
            raise UserError("images: this model sees no pictures; needed: a vision-language model")
        check_params(params, self._decode)
        for token in params.stop_ids:
            self._checked_token("stop_ids", token)
        length = len(request.context)
        if length == 0:
            raise UserError("context is empty; needed: at least one token")
        if length + params.max_new_tokens > self.decoder.max_context:
            raise UserError(
                f"context of {length} tokens and max_new_tokens {params.max_new_tokens} exceed the "
                f"{self.decoder.max_context} positions of the model"
            )
        if length + params.max_new_tokens > self._room:
            raise UserError(
                f"context of {length} tokens and max_new_tokens {params.max_new_tokens} exceed the cache; needed: "
                f"rollout.cache_tokens of at least {length + params.max_new_tokens + 2 * PAGE_SIZE}"
            )
        context = np.array(request.context)
        if context.dtype.kind not in "iu" or context.min() < 0 or context.max() >= self.decoder.vocabulary:
            raise UserError(f"context: needed: token ids in [0, {self.decoder.vocabulary})")
        context = context.astype(np.int64)
        if self._album is None:
            return context, ()
        pictures = self._album.pictures(request.images)
        return self._album.marked(context, pictures), pictures

    def _checked_token(self, name: str, token: int) -> int:
        if not 0 <= token < self.decoder.vocabulary:
            raise UserError(f"{name} holds {token}; needed: token ids in [0, {self.decoder.vocabulary})")
        return token
