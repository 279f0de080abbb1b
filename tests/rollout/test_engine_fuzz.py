"""Any order of asking, cancelling, closing and changing weights, in a cache that is too small for it all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.kv_cache import PAGE_SIZE, pages_for
from sftrl_fast.rollout.request import Completion, Request, RequestKey, SamplingParams
from sftrl_fast.rollout.scheduler import Prefix, Sequence

STOPS = frozenset({5, 9})
Said = dict[int, tuple[Request, SamplingParams, Completion]]


def check_books(engine: NativeEngine) -> None:
    """Every page has exactly one owner or is free, and every prefix knows how many read it."""
    scheduler = engine.scheduler
    rows, cache = scheduler.rows, scheduler.cache
    held = [rows.own_pages(slot) for slot in scheduler.owner]
    sessions = [session for session in scheduler._sessions.values() if session.pages is not None]
    held += [session.pages for session in sessions if session.pages is not None]
    prefixes = list(scheduler._known.values())
    table = scheduler.prefixes
    held += [table.pages[p.row, : pages_for(int(table.lengths[p.row]))] for p in prefixes if p.row]
    pages = np.concatenate(held) if held else np.empty(0)
    assert len(np.unique(pages)) == len(pages) == cache.pages - cache.free
    for prefix in prefixes:
        readers = [s for s in scheduler.running.values() if s.prefix is prefix]
        assert prefix.users == len(readers) + sum(s.prefix is prefix for s in sessions)
        assert prefix.claims == sum(s.prefix is prefix for s in scheduler._queued.values())
        assert prefix.users or prefix.claims
    for slot, owner in scheduler.owner.items():
        assert owner.slot == slot
        assert isinstance(owner, Prefix) or scheduler.running[owner.ticket] is owner
        if isinstance(owner, Sequence):
            assert rows.cached[slot] <= PAGE_SIZE * rows.page_count[slot]


def act(engine: NativeEngine, random: np.random.Generator, said: Said, asked: dict[int, Any]) -> None:
    match int(random.integers(10)):
        case 0 | 1 | 2:
            session = f"s{random.integers(3)}" if random.random() < 0.6 else None
            known = engine.scheduler._sessions.get(session)
            if known is not None and known.busy:
                return
            length = int(random.integers(1, 40))
            context = [int(random.integers(2)), *range(length)]
            if known is not None and random.random() < 0.7:
                context = [*known.prefix.tokens.tolist(), *known.own.tolist(), *context][:90]
            key = RequestKey(0, 0, int(random.integers(5)), int(random.integers(9)), 0)
            request = Request(context, key, session)
            params = SamplingParams(int(random.integers(1, 40)), float(random.choice([0.0, 0.8])))
            (ticket,) = engine.submit([request], params)
            asked[ticket] = (request, params)
        case 3:
            if asked:
                engine.cancel([int(random.choice(list(asked)))])
        case 4:
            engine.close(f"s{random.integers(3)}")
        case _:
            for ticket, completion in engine.step():
                said[ticket] = (*asked[ticket], completion)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    pages=st.integers(10, 24),
    rows=st.integers(1, 6),
    step=st.sampled_from([5, 64]),
)
def test_books_balance_and_answers_are_those_of_a_quiet_engine(
    llama: Any, seed: int, pages: int, rows: int, step: int
) -> None:
    random = np.random.default_rng(seed)
    engine = NativeEngine(llama, STOPS, max_sequences=rows, cache_tokens=pages * PAGE_SIZE, step_tokens=step)
    quiet = NativeEngine(llama, STOPS, max_sequences=1, cache_tokens=2048)
    said: Said = {}
    asked: dict[int, Any] = {}
    for _ in range(80):
        act(engine, random, said, asked)
        check_books(engine)
    while engine.scheduler.busy:
        for ticket, completion in engine.step():
            said[ticket] = (*asked[ticket], completion)
        check_books(engine)
    for i in range(3):
        engine.close(f"s{i}")
    assert engine.cache.free == engine.cache.pages
    for request, params, completion in list(said.values())[::4]:
        (alone,) = quiet.generate([Request(request.context, request.key)], params)
        assert alone.token_ids == completion.token_ids
        assert np.allclose(alone.logprobs, completion.logprobs, atol=1e-4)


def test_weights_that_change_under_way_give_answers_of_one_version(llama: Any) -> None:
    requests = [Request([i, 2, 3], RequestKey(0, 0, i, 0, 0), f"s{i}") for i in range(6)]
    params = SamplingParams(20, 0.8)
    engine = NativeEngine(llama, frozenset(), max_sequences=4, cache_tokens=1024)
    engine.generate([Request([9, 9], RequestKey(0, 0, 9, 0, 0), "old")], params)
    saved = llama.lm_head.weight.detach().clone()
    try:
        engine.submit(requests, params)
        for _ in range(9):
            assert engine.step() == []
        with torch.no_grad():
            llama.lm_head.weight.mul_(0.5)
        answers: dict[int, Completion] = {}
        while engine.scheduler.busy:
            answers |= dict(engine.step())
            check_books(engine)
        fresh = NativeEngine(llama, frozenset(), max_sequences=4, cache_tokens=1024).generate(
            requests, params
        )
        assert [answers[ticket].token_ids for ticket in sorted(answers)] == [a.token_ids for a in fresh]
        assert {answer.weights_version for answer in answers.values()} == {2}
        again = Request([9, 9, 1, 2], RequestKey(0, 0, 9, 0, 1), "old")
        (later,) = engine.generate([again], params)
        (expected,) = NativeEngine(llama, frozenset(), max_sequences=4, cache_tokens=1024).generate(
            [again], params
        )
        assert np.allclose(later.logprobs, expected.logprobs, atol=1e-4)
    finally:
        with torch.no_grad():
            llama.lm_head.weight.copy_(saved)
