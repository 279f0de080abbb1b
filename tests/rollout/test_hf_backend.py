"""The engine over ``model.generate`` on a small random Llama, in float32."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftrl_fast.core import UserError
from sftrl_fast.ops.sample import sample, uniforms
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams

STOPS = frozenset({5, 9, 11})
PAD = 0


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def requests(count: int, seed: int = 0) -> list[Request]:
    """Ragged contexts; every third repeats its forerunner under another key."""
    generator = torch.Generator().manual_seed(seed)
    contexts: list[list[int]] = []
    for i in range(count):
        length = int(torch.randint(1, 20, (), generator=generator))
        fresh = torch.randint(64, (length,), generator=generator).tolist()
        contexts.append(contexts[-1] if i % 3 == 2 else fresh)
    return [Request(context, RequestKey(1, 2, i // 3, i % 3, 0)) for i, context in enumerate(contexts)]


def backend(model: LlamaForCausalLM, rows: int = 16, stops: frozenset[int] = STOPS) -> HFBackend:
    return HFBackend(model, stops, PAD, max_sequences=rows)


def step_by_step(
    model: LlamaForCausalLM, request: Request, params: SamplingParams
) -> tuple[list[int], list[float], list[float]]:
    """One token at a time, the whole context encoded anew for each."""
    ids, plain, sampled = list(request.context), [], []
    key = request.key
    for position in range(params.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1]
        number = torch.tensor(
            [float(uniforms(key.seed, key.step, key.prompt, key.sample, key.turn, position))]
        )
        token, p, s = sample(
            logits, number, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p
        )
        ids.append(int(token))
        plain.append(float(p))
        sampled.append(float(s))
        if int(token) in STOPS:
            break
    return ids[len(request.context) :], plain, sampled


@pytest.mark.parametrize(
    "params",
    [SamplingParams(12), SamplingParams(12, 0.7, 20, 0.9), SamplingParams(12, 0.0)],
    ids=["plain", "filtered", "greedy"],
)
def test_a_ragged_batch_answers_as_each_request_would_alone(
    model: LlamaForCausalLM, params: SamplingParams
) -> None:
    batch = requests(13)
    together = backend(model).generate(batch, params)
    for request, completion in zip(batch, together, strict=True):
        (alone,) = backend(model).generate([request], params)
        tokens, plain, sampled = step_by_step(model, request, params)
        for answer in (completion, alone):
            assert answer.token_ids == tokens
            assert answer.stopped == (tokens[-1] in STOPS)
            assert answer.logprobs == pytest.approx(plain, abs=1e-4)
            assert answer.sampled_logprobs == pytest.approx(sampled, abs=1e-4)
    assert len({len(completion.token_ids) for completion in together}) > 1
    assert {completion.stopped for completion in together} == {True, False}


def test_size_of_batches_and_order_of_requests_change_nothing(model: LlamaForCausalLM) -> None:
    batch = requests(9)
    tokens = [c.token_ids for c in backend(model, rows=16).generate(batch, SamplingParams(8))]
    small = [c.token_ids for c in backend(model, rows=2).generate(batch[::-1], SamplingParams(8))]
    assert small[::-1] == tokens


def test_greedy_is_what_plain_generate_gives(model: LlamaForCausalLM) -> None:
    for request in requests(6):
        ids = torch.tensor([request.context])
        plain = model.generate(  # type: ignore[misc]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=10,
            pad_token_id=PAD,
            eos_token_id=list(STOPS),
        )
        (ours,) = backend(model).generate([request], SamplingParams(10, 0.0))
        assert ours.token_ids == plain[0, ids.shape[1] :].tolist()
        assert ours.sampled_logprobs == [0.0] * len(ours.token_ids)


def test_keys_tell_members_of_a_group_steps_and_turns_apart(model: LlamaForCausalLM) -> None:
    keys = [
        RequestKey(0, 0, 0, 0, 0),
        RequestKey(0, 0, 0, 1, 0),
        RequestKey(0, 1, 0, 0, 0),
        RequestKey(0, 0, 0, 0, 1),
    ]
    batch = [Request([1, 2, 3], key) for key in [*keys, keys[0]]]
    answers = backend(model, stops=frozenset()).generate(batch, SamplingParams(16))
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    assert answers[0].token_ids == answers[-1].token_ids
    assert [len(answer.token_ids) for answer in answers] == [16] * 5


def test_counters_count_contexts_draws_and_every_position_computed(model: LlamaForCausalLM) -> None:
    engine = backend(model, rows=2, stops=frozenset())
    batch = [Request([1] * length, RequestKey(0, 0, length, 0, 0)) for length in (7, 3, 4)]
    engine.generate(batch, SamplingParams(5))
    assert engine.counters.prefill_tokens == 14
    assert engine.counters.decode_tokens == 15
    # batches (3, 4) and (7): padded contexts and four further steps each
    assert engine.counters.executed_tokens == 2 * (4 + 4) + (7 + 4)
    engine.generate(batch[:1], SamplingParams(1))
    assert engine.counters.prefill_tokens == 21
    assert engine.counters.decode_tokens == 16


def test_settings_that_came_with_the_weights_do_not_leak_in(model: LlamaForCausalLM) -> None:
    batch = requests(4)
    before = backend(model).generate(batch, SamplingParams(8))
    config = model.generation_config
    changed = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "max_length": 3}
    saved = {name: getattr(config, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(config, name, value)
        after = backend(model).generate(batch, SamplingParams(8))
        assert model.generation_config is config
        assert config.repetition_penalty == 9.0
    finally:
        for name, value in saved.items():
            setattr(config, name, value)
    assert [a.token_ids for a in after] == [b.token_ids for b in before]


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_left_as_they_were(model: LlamaForCausalLM, training: bool) -> None:
    model.train(training)
    backend(model).generate(requests(2), SamplingParams(3))
    assert model.training is training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    weight = model.lm_head.weight.data
    saved = weight[3, 0].clone()
    weight[3, 0] = float("nan")
    try:
        with pytest.raises(UserError, match="logits"):
            backend(model).generate(requests(2), SamplingParams(2))
    finally:
        weight[3, 0] = saved
    assert model.training is training


def test_nothing_asked_is_nothing_answered_and_nothing_warned(
    model: LlamaForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert backend(model).generate([], SamplingParams(4)) == []
        backend(model).generate(requests(3), SamplingParams(4))
    assert caplog.records == []


def test_bad_requests_and_settings_raise_and_name_the_argument(model: LlamaForCausalLM) -> None:
    good = Request([1, 2], RequestKey(0, 0, 0, 0, 0))
    for request, params, message in (
        (Request([], good.key), SamplingParams(4), "context is empty"),
        (Request([1] * 61, good.key), SamplingParams(4), "context of 61 tokens .* 64 positions"),
        (good, SamplingParams(0), "max_new_tokens is 0"),
        (good, SamplingParams(4, -1.0), "temperature"),
        (good, SamplingParams(4, 1.0, -1), "top_k"),
        (good, SamplingParams(4, 1.0, 0, 0.0), "top_p"),
        (Request([1], RequestKey(0, 0, 0, 2**20, 0)), SamplingParams(4), "sample is 1048576"),
    ):
        with pytest.raises(UserError, match=message):
            backend(model).generate([request], params)
    assert backend(model).generate([Request([1] * 60, good.key)], SamplingParams(4))
    with pytest.raises(UserError, match="max_sequences is 0"):
        backend(model, rows=0)
    with pytest.raises(UserError, match="64"):
        backend(model, stops=frozenset({64}))
