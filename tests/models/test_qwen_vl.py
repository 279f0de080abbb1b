"""A second family through the same protocol: Qwen2.5-VL's packed rows and answers against transformers' own."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.exact import exact
from tests.models.mllama_case import picture
from tests.models.qwen_vl_case import logprobs, make, processor, theirs
from torch import Tensor
from transformers import GenerationConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sftrl_fast.config import load_config
from sftrl_fast.core import Message, Row, UserError
from sftrl_fast.evaluate import make_engine, why_not_native
from sftrl_fast.models.causal_lm import check_head, token_logprobs
from sftrl_fast.models.load import LanguageModel, load, save
from sftrl_fast.models.qwen_vl import IMAGE_TOKEN, QwenVL
from sftrl_fast.models.vision import PARTS, CrossVision
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams
from sftrl_fast.train.pack import dialogue_row, micro_batches
from sftrl_fast.train.sft import cross_entropy_step

CLOSE = 1e-4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return make()


def row(language: LanguageModel, *turns: str, images: dict[int, np.ndarray] | None = None) -> Row:
    """Questions and answers in turn; ``images`` come with the turns of those numbers."""
    shown = images or {}
    dialogue = [
        Message("assistant" if i % 2 else "user", text, image=shown.get(i)) for i, text in enumerate(turns)
    ]
    return dialogue_row(language.chat, dialogue)


def check(language: LanguageModel, rows: list[Row], max_tokens: int = 100_000) -> None:
    found: dict[int, list[float]] = {}
    for batch in micro_batches(rows, max_tokens, CPU, language.vision):
        values, _ = token_logprobs(language.model, batch.tokens)
        for index, part in zip(batch.rows, values.split(batch.counts.tolist()), strict=True):
            found[index] = part.tolist()
    for index, one in enumerate(rows):
        expected = logprobs(language, one.ids, one.images)[torch.tensor(one.trained[1:])]
        assert torch.allclose(torch.tensor(found[index]), expected, atol=CLOSE), index


@pytest.mark.parametrize("size", [(28, 28), (56, 42), (20, 90), (5, 5), (200, 200)])
def test_a_row_with_a_picture_of_any_size(language: LanguageModel, size: tuple[int, int]) -> None:
    check(language, [row(language, "Cards?", '"K", 3', images={0: picture(*size, seed=1)})])


def test_a_picture_takes_as_many_tokens_as_the_processor_makes(language: LanguageModel) -> None:
    config = language.model.config
    for height, width in ((28, 28), (84, 84), (300, 40), (1, 100)):
        image = picture(height, width, 2)
        ids = language.chat.prompt_ids("Cards?", image)
        grid = theirs(language, ids, [image])["image_grid_thw"][0]
        assert ids.count(config.image_token_id) == int(grid.prod()) // 4


def test_text_and_pictures_mix_in_batches_of_any_size(language: LanguageModel) -> None:
    rows = [
        row(language, "only text", "so it is"),
        row(language, "Cards?", "3*8", images={0: picture(33, 33, 1)}),
        row(language, "Cards?", "2*(7+5)", images={0: picture(64, 50, 2)}),
        row(language, "more text", "1+1", "again", "1+1"),
    ]
    for size in (1, 60, 100_000):
        check(language, rows, size)


def test_turns_and_pictures_after_a_picture(language: LanguageModel) -> None:
    turns = ("Cards?", "3*7", "You failed. Again.", "3*8", "And these?", "8*3")
    check(language, [row(language, *turns, images={0: picture(40, 56, 3)})])
    check(language, [row(language, *turns, images={0: picture(40, 56, 3), 4: picture(70, 30, 4)})])
    check(language, [row(language, *turns, images={2: picture(40, 56, 3)})])


def test_a_group_shares_prompt_and_picture(language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, other = picture(50, 50, 4), picture(80, 30, 5)
    rows = [row(language, "Cards?", answer, images={0: shown}) for answer in ("3*8", "(4+4)*3", "1")]
    rows += [row(language, "Cards?", answer, images={0: other}) for answer in ("3*8", "9")]
    (batch,) = micro_batches(rows, 100_000, CPU, language.vision)
    calls = []
    tower = type(language.model.model.visual).forward
    monkeypatch.setattr(
        type(language.model.model.visual), "forward",
        lambda self, pixels, grid_thw, **k: calls.append(len(grid_thw)) or tower(self, pixels, grid_thw, **k),
    )  # fmt: skip
    token_logprobs(language.model, batch.tokens)
    assert calls == [2], "the tower runs once for each picture"
    monkeypatch.undo()
    check(language, rows)


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's rotary embedding without transformers' way through float32."""
    cos, sin = cos.unsqueeze(-2).to(q.dtype), sin.unsqueeze(-2).to(q.dtype)
    half = modeling_qwen2_5_vl.rotate_half
    return q * cos + half(q) * sin, k * cos + half(k) * sin


def test_packed_gradients_are_those_of_each_row_alone(
    language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, the tower's and the merger's among them."""
    monkeypatch.setattr(modeling_qwen2_5_vl, "apply_rotary_pos_emb_vision", rotated)
    exactly = replace(language, model=exact(copy.deepcopy(language.model)))
    shown, other = picture(50, 50, 4), picture(20, 90, 5)
    turns = (["3*8"], ["4", "Again.", "(4+4)*3"], ["1"])
    rows = [row(exactly, "Cards?", *more, images={0: shown}) for more in turns]
    rows += [row(exactly, "Cards?", answer, images={0: other}) for answer in ("3*8", "9")]
    rows += [row(exactly, "a", "b")]
    (batch,) = micro_batches(rows, 100_000, CPU, exactly.vision)
    found, _ = token_logprobs(exactly.model, batch.tokens)
    rows = [rows[i] for i in batch.rows]
    expected = torch.cat(
        [logprobs(exactly, one.ids, one.images)[torch.tensor(one.trained[1:])] for one in rows]
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.arange(1, len(found) + 1) / len(found)
    gradients = []
    for values in (found, expected):
        exactly.model.zero_grad()
        (values * weight).sum().backward()
        gradients.append({name: p.grad for name, p in exactly.model.named_parameters() if p.grad is not None})
    assert any("visual.blocks" in name for name in gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9, msg=name)


def test_answers_are_generates(language: LanguageModel) -> None:
    """Ragged rows with one picture and two, greedy, a group sharing its picture; no answer holds an image token."""
    chat = language.chat
    shown, other = picture(50, 50, 4), picture(80, 30, 5)
    two = (
        chat.prompt_ids("Cards?", shown)
        + chat.answer_ids("1")
        + chat.reply_ids("Now?", stopped=True, image=other)
    )
    contexts = [(chat.prompt_ids("Cards?", shown), (shown,)), (two, (shown, other))]
    contexts += [
        (chat.prompt_ids("And the cards are?", other), (other,)),
        (chat.prompt_ids("No picture"), ()),
    ]
    engine = HFBackend(language.model, frozenset(), 0, max_sequences=8, vision=language.vision)
    requests = [
        Request(list(ids), RequestKey(0, 0, place, sample, 0), images=images)
        for place, (ids, images) in enumerate(contexts)
        for sample in range(2)
    ]
    answers = engine.generate(requests, SamplingParams(6, temperature=0.0))
    assert language.vision is not None
    undrawn = language.vision.undrawn
    assert language.model.config.image_token_id in undrawn
    for place, (ids, images) in enumerate(contexts):
        language.model.model.rope_deltas = None
        expected = language.model.generate(
            **theirs(language, ids, images),
            generation_config=GenerationConfig(
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
                suppress_tokens=list(undrawn),
            ),
        )[0, len(ids) :].tolist()
        for answer in answers[2 * place : 2 * place + 2]:
            assert answer.token_ids == expected
            whole = logprobs(language, ids + expected, images, undrawn)[-6:]
            assert torch.allclose(torch.tensor(answer.logprobs), whole, atol=CLOSE)


def test_the_engine_falls_back_aloud(language: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    assert "Qwen2_5_VLForConditionalGeneration is none of" in why_not_native(language)
    assert not isinstance(language.vision, CrossVision)
    assert isinstance(load("tiny-image", device="cpu").vision, CrossVision)
    with caplog.at_level("WARNING"):
        assert isinstance(make_engine(language, load_config()), HFBackend)
    assert "transformers' generate" in caplog.text


def test_it_learns_and_parts_are_the_whole(language: LanguageModel) -> None:
    learner = replace(language, model=copy.deepcopy(language.model))
    parts = learner.parts
    assert set(parts) == set(PARTS)
    counted = sum(p.numel() for modules in parts.values() for module in modules for p in module.parameters())
    assert counted == learner.num_parameters
    rows = [row(learner, "Cards?", "3*8", images={0: picture(50, 50, 4)}), row(learner, "a", "b")]
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        losses.append(cross_entropy_step(learner.model, rows, 10_000, learner.vision).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2


def test_a_saved_model_comes_back(language: LanguageModel, tmp_path: Path) -> None:
    save(language.model, language.tokenizer, tmp_path / "m", language.vision)
    copied = load(str(tmp_path / "m"), device="cpu")
    assert isinstance(copied.vision, QwenVL)
    one = row(language, "Cards?", "3*8", images={0: picture(70, 70, 1)})
    assert row(copied, "Cards?", "3*8", images={0: picture(70, 70, 1)}).ids == one.ids
    check(copied, [one])
    check_head(copied.model, copied.chat.prompt_ids("Cards?"))


def test_what_does_not_fit_is_named(language: LanguageModel) -> None:
    config = language.model.config
    with pytest.raises(UserError, match=r"patches of \(14, 2, 2\) and its vision tower takes \(7, 2, 2\)"):
        QwenVL.of(config, language.tokenizer, Qwen2VLImageProcessorPil())
    with pytest.raises(UserError, match=r"tokenizer has <\|image_pad\|> at"):
        QwenVL.of(config, load("tiny", device="cpu").tokenizer, processor())
    with pytest.raises(UserError, match="image of 1 x 300: absolute aspect ratio"):
        language.chat.prompt_ids("Cards?", picture(1, 300, 0))
    good = row(language, "Cards?", "3*8", images={0: picture(28, 28, 0)})
    (batch,) = micro_batches([replace(good, images=good.images * 2)], 10_000, CPU, language.vision)
    with pytest.raises(UserError, match="image tokens and pictures for"):
        token_logprobs(language.model, batch.tokens)


def test_text_cannot_hold_the_image_token(language: LanguageModel) -> None:
    image_id = language.model.config.image_token_id
    assert image_id not in language.chat.prompt_ids(f"a{IMAGE_TOKEN}b")
    assert image_id not in language.chat.answer_ids(IMAGE_TOKEN)
