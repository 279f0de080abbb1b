"""Requests and dialogues with pictures, by the engine and over transformers' generate."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Text
from tests.models.mllama_case import logprobs, make, picture, theirs

from sftrl_fast.core import UserError
from sftrl_fast.models.causal_lm import token_logprobs
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.rollout.engine import SEQUENCE_TOKENS, NativeEngine, default_cache
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Engine, Request, RequestKey, SamplingParams
from sftrl_fast.train.pack import episode_rows, micro_batches

GREEDY = SamplingParams(6, temperature=0.0)
CLOSE = 1e-4
POINTS = "sftrl/points-image-id-v1"
SLIDES = "toy/Slides-v0"


@pytest.fixture(scope="module", params=[1, 4])
def language(request: pytest.FixtureRequest) -> LanguageModel:
    return make(request.param)


@pytest.fixture(scope="module")
def four() -> LanguageModel:
    return make(4)


Make = Callable[..., Engine]


def native(language: LanguageModel, **settings: Any) -> NativeEngine:
    chat = language.chat
    settings = {
        "max_sequences": 16,
        "cache_tokens": 4096,
        "decode": chat.decode,
        "vision": language.vision,
    } | settings
    return NativeEngine(language.model, chat.stop_ids, **settings)


def hf(language: LanguageModel, **settings: Any) -> HFBackend:
    chat = language.chat
    settings = {"max_sequences": 16, "decode": chat.decode, "vision": language.vision} | settings
    return HFBackend(language.model, chat.stop_ids, min(chat.stop_ids), **settings)


@pytest.fixture(params=[native, hf])
def backend(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture
def tower_calls(four: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each call of the vision tower."""
    calls: list[int] = []
    tower = type(four.model.model.vision_model).forward
    monkeypatch.setattr(
        type(four.model.model.vision_model), "forward",
        lambda self, *a, **k: calls.append(len(k["pixel_values"])) or tower(self, *a, **k),
    )  # fmt: skip
    return calls


def request(language: LanguageModel, text: str, *images: np.ndarray, sample: int = 0) -> Request:
    ids = language.chat.prompt_ids(text, images[0] if images else None)
    for image in images[1:]:
        ids += language.chat.reply_ids(text, stopped=False, image=image)
    return Request(ids, RequestKey(0, 0, len(text), sample, 0), images=images)


@torch.no_grad()
def greedy(language: LanguageModel, asked: Request) -> list[int]:
    """By whole forward passes of transformers' own."""
    ids: list[int] = []
    while len(ids) < GREEDY.max_new_tokens and not set(ids[-1:]) & language.chat.stop_ids:
        inputs = theirs(language, asked.context + ids, asked.images)
        ids.append(int(language.model(**inputs, use_cache=False).logits[0, -1].argmax()))
    return ids


def test_answers_are_transformers(language: LanguageModel, backend: Make) -> None:
    shown = picture(40, 40, 1)
    asked = [
        request(language, "Cards?", shown),
        request(language, "text alone"),
        request(language, "a longer question about cards", shown),
        request(language, "others", picture(28, 28, 2)),
    ]
    if language.model.config.vision_config.max_num_tiles == 4:
        asked.append(request(language, "four tiles", picture(56, 56, 3)))
    for engine in (backend(language), backend(language, max_sequences=2)):
        for one, answer in zip(asked, engine.generate(asked, GREEDY), strict=True):
            assert answer.token_ids == greedy(language, one)


def test_the_log_probabilities_are_the_trainers(four: LanguageModel, backend: Make) -> None:
    shown = picture(56, 56, 3)
    asked = [request(four, "Cards?", shown, sample=s) for s in range(5)] + [request(four, "text", sample=9)]
    answers = backend(four).generate(asked, SamplingParams(5))
    for one, answer in zip(asked, answers, strict=True):
        assert max(answer.token_ids) < four.model.config.image_token_index
        whole = logprobs(four, one.context + answer.token_ids, one.images)[-len(answer.token_ids) :]
        assert torch.allclose(torch.tensor(answer.logprobs), whole, atol=CLOSE)


def test_a_group_has_its_picture_encoded_once(
    four: LanguageModel, backend: Make, tower_calls: list[int]
) -> None:
    shown, other = picture(56, 56, 3), picture(56, 56, 4)
    asked = [request(four, "Cards?", shown, sample=s) for s in range(4)]
    alone = backend(four).generate(asked, SamplingParams(5))
    tower_calls.clear()
    mixed = backend(four).generate(
        [*asked, *(request(four, "And?", other, sample=s) for s in range(4))], SamplingParams(5)
    )
    assert tower_calls == [2]
    assert [a.token_ids for a in mixed[:4]] == [a.token_ids for a in alone], "company changes nothing"


def test_several_pictures_of_a_dialogue(four: LanguageModel, backend: Make) -> None:
    asked = [
        request(four, "First?", picture(56, 56, 5), picture(28, 28, 6)),
        request(four, "One", picture(56, 56, 5)),
        request(four, "Three", *(picture(28, 28, seed) for seed in (7, 8, 9))),
    ]
    for one, answer in zip(asked, backend(four).generate(asked, GREEDY), strict=True):
        assert answer.token_ids == greedy(four, one)


def test_pictures_need_a_model_that_sees(four: LanguageModel, backend: Make) -> None:
    tiny = load("tiny", device="cpu")
    asked = [Request([1, 2, 3], RequestKey(0, 0, 0, 0, 0), images=(picture(9, 9, 0),))]
    with pytest.raises(UserError, match="images: this model sees no pictures"):
        HFBackend(tiny.model, frozenset({0}), 0, max_sequences=1).generate(asked, GREEDY)
    with pytest.raises(UserError, match="images: this model sees no pictures"):
        NativeEngine(tiny.model, frozenset({0}), max_sequences=1, cache_tokens=256).generate(asked, GREEDY)
    bad = Request(four.chat.prompt_ids("text"), RequestKey(0, 0, 0, 0, 0), images=(picture(9, 9, 0),))
    with pytest.raises(UserError, match="0 image tokens and 1 pictures"):
        backend(four).generate([bad], GREEDY)


def test_episodes_of_cards(four: LanguageModel, backend: Make) -> None:
    groups = run_episodes(
        backend(four), four.chat, POINTS, [3, 8], group_size=3, params=SamplingParams(4), seed=1, step=0,
        env_kwargs={"size": 56, "verify_iter": 2}, max_context=four.max_context,
    )  # fmt: skip
    for group in groups:
        first = group.episodes[0].turns[0].image
        assert first is not None
        assert first.shape == (56, 56, 3)
        for episode in group.episodes:
            assert episode.turns[0].image is first, "a group looks at one picture"
            assert [turn.image for turn in episode.turns[1:]] == [None], "the table is not shown again"
            assert [turn.verdict.recognised for turn in episode.turns] == [False, False]
    rows = episode_rows(groups)
    for batch in micro_batches(rows, 100_000, torch.device("cpu"), four.vision):
        found, _ = token_logprobs(four.model, batch.tokens)
        sampled = torch.tensor([p for i in batch.rows for p in rows[i].old_logprobs])
        assert torch.allclose(found.detach(), sampled, atol=CLOSE)


class Slides(gymnasium.Env[Any, str]):
    """A new picture every other turn."""

    def __init__(self) -> None:
        self.observation_space = Dict({"text": Text(9), "image": Box(0, 255, (28, 28, 3), np.uint8)})
        self.action_space = Text(9)

    def _look(self) -> dict[str, Any]:
        return {"text": "see", "image": picture(28, 28, self.turn // 2).copy()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.turn = 0
        return self._look(), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        del action
        self.turn += 1
        return self._look(), 0.0, self.turn == 4, False, {"success": True, "outcome": 0}


@pytest.fixture
def _slides() -> Iterator[None]:
    entry: Any = Slides
    gymnasium.register(SLIDES, entry_point=entry)
    yield
    del gymnasium.registry[SLIDES]


@pytest.mark.usefixtures("_slides")
def test_only_a_new_picture_is_shown(four: LanguageModel, backend: Make) -> None:
    (group,) = run_episodes(
        backend(four), four.chat, SLIDES, [0], group_size=2, params=SamplingParams(3), seed=1, step=0,
        env_kwargs={}, max_context=four.max_context,
    )  # fmt: skip
    for episode in group.episodes:
        assert [turn.image is not None for turn in episode.turns] == [True, False, True, False]
        assert episode.turns[0].verdict.recognised is None
        counts = [turn.prompt_ids.count(four.model.config.image_token_index) for turn in episode.turns]
        assert counts == [1, 0, 1, 0]
    first, second = (episode.turns[0].image for episode in group.episodes)
    assert first is second, "environments of their own drew one picture"


def turns(engine: Engine, language: LanguageModel, session: str | None) -> list[list[int]]:
    """Four dialogues of four turns, the third with a new picture; greedy answers."""
    shown = [picture(56, 56, seed) for seed in range(3)]
    contexts = [language.chat.prompt_ids("Cards?", shown[i // 2]) for i in range(4)]
    images = [(shown[i // 2],) for i in range(4)]
    said: list[list[int]] = []
    for turn in range(4):
        asked = [
            Request(list(context), RequestKey(0, 0, i, 0, turn), session and (session, i), images[i])
            for i, context in enumerate(contexts)
        ]
        for i, answer in enumerate(engine.generate(asked, GREEDY)):
            said.append(answer.token_ids)
            new = shown[2] if turn == 1 else None
            images[i] += (new,) if new is not None else ()
            contexts[i] += answer.token_ids + language.chat.reply_ids("no", stopped=answer.stopped, image=new)
    return said


def test_revision_turns_keep_keys_values_and_pictures(four: LanguageModel, tower_calls: list[int]) -> None:
    kept, plain = native(four), native(four)
    expected = turns(plain, four, None)
    tower_calls.clear()
    assert turns(kept, four, "a") == expected
    assert sum(tower_calls) == kept.counters.pictures == 3, "each picture goes through the tower once"
    assert kept.counters.prefill_tokens < 0.5 * plain.counters.prefill_tokens
    assert kept.counters.picture_seconds > 0


def test_a_small_cache_evicts_and_changes_no_answer(four: LanguageModel) -> None:
    shown = [picture(56, 56, seed) for seed in range(3)]
    asked = [request(four, "Cards?", shown[i % 3], sample=i) for i in range(12)] + [request(four, "text")]
    wide = native(four).generate(asked, SamplingParams(24))
    tight = native(four, cache_tokens=160, step_tokens=20)
    found = tight.generate(asked, SamplingParams(24))
    assert tight.counters.evictions > 0
    assert [a.token_ids for a in found] == [a.token_ids for a in wide]


def test_a_picture_goes_when_nobody_shows_it(four: LanguageModel) -> None:
    engine = native(four)
    engine.generate([request(four, "Cards?", picture(56, 56, 1))], GREEDY)
    held = request(four, "Cards?", picture(56, 56, 2))
    engine.generate([Request(held.context, held.key, "a", held.images)], GREEDY)
    gc.collect()
    assert len(engine._album) == 1
    engine.close("a")
    assert len(engine._album) == 0
    assert engine.cache.free == engine.cache.pages


@pytest.mark.parametrize(
    "changed",
    [
        "model.vision_model.patch_embedding",
        "model.vision_model.transformer.layers.0.mlp.fc1",
        "model.vision_model.global_transformer.layers.0.self_attn.v_proj",
        "model.multi_modal_projector",
        "cross_attn.k_proj",
        "cross_attn.v_proj",
    ],
)
def test_new_weights_look_at_the_picture_again(four: LanguageModel, changed: str) -> None:
    language = replace(four, model=copy.deepcopy(four.model))
    engine, asked = native(language), request(four, "Cards?", picture(56, 56, 1))
    session = Request(asked.context, asked.key, "a", asked.images)
    (before,) = engine.generate([session], GREEDY)
    modules = [module for name, module in language.model.named_modules() if name.endswith(changed)]
    assert modules
    for module in modules:
        module.weight.data.mul_(-3)
    (after,) = engine.generate([session], GREEDY)
    assert engine.counters.pictures == 2
    assert after.token_ids == greedy(language, asked)
    whole = logprobs(language, asked.context + after.token_ids, asked.images)[-len(after.token_ids) :]
    assert torch.allclose(torch.tensor(after.logprobs), whole, atol=CLOSE)
    assert before.logprobs != after.logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_look_in_one_call_are_the_same_bits(four: LanguageModel, dtype: torch.dtype) -> None:
    language = replace(four, model=copy.deepcopy(four.model).to(dtype))
    whole, single = native(language), native(language)
    single.decoder = Decoder(language.model, fused=False)
    assert whole.decoder._seeing is not None
    assert single.decoder._seeing is None
    asked = [request(four, "Cards?", picture(56, 56, i % 2), sample=i) for i in range(6)] + [
        request(four, "text")
    ]
    for one, other in zip(
        whole.generate(asked, SamplingParams(8)), single.generate(asked, SamplingParams(8)), strict=True
    ):
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)


def test_more_pictures_than_there_is_room_for_make_room(four: LanguageModel) -> None:
    asked = [request(four, "Cards?", picture(56, 56, i), sample=i) for i in range(12)]
    found = native(four).generate(asked, GREEDY)
    for one, answer in zip(asked, found, strict=True):
        assert answer.token_ids == greedy(four, one)


def test_the_default_cache_leaves_room_for_a_picture_a_sequence(
    four: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = native(four).decoder
    monkeypatch.setattr(decoder, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**24, 2**25))
    positions = four.vision.picture_tokens
    tokens = default_cache(decoder, 10_000, positions)
    assert tokens < default_cache(decoder, 10_000)
    position_bytes = 2 * decoder.kv_heads * decoder.head_dim * 4
    pictures = tokens / SEQUENCE_TOKENS * positions * decoder.cross_layers
    assert (tokens * decoder.layers + pictures) * position_bytes == pytest.approx(2**23, rel=0.01)
