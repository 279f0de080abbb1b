"""Packed rows with pictures against transformers' own forward pass, row by row."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.exact import exact
from tests.models.mllama_case import TILE, logprobs, make, picture, processor, theirs

from sftrl_fast.core import Message, Row, UserError
from sftrl_fast.models.causal_lm import check_head, token_logprobs
from sftrl_fast.models.load import LanguageModel, load, save
from sftrl_fast.models.mllama import IMAGE_TOKEN, Mllama
from sftrl_fast.train.pack import dialogue_row, micro_batches
from sftrl_fast.train.sft import cross_entropy_step

CLOSE = 1e-4
CPU = torch.device("cpu")
SIZES = {1: (TILE, TILE), 4: (2 * TILE, 2 * TILE), 2: (20, 90)}
"""Tiles in use to height and width."""


@pytest.fixture(scope="module", params=[1, 4])
def language(request: pytest.FixtureRequest) -> LanguageModel:
    return make(request.param)


@pytest.fixture(scope="module")
def four() -> LanguageModel:
    return make(4)


def row(
    language: LanguageModel, *turns: str, image: np.ndarray | None = None, later: np.ndarray | None = None
) -> Row:
    """Questions and answers in turn; ``image`` comes with the first question, ``later`` with the second."""
    images = {0: image, 2: later}
    dialogue = [
        Message("assistant" if i % 2 else "user", text, image=images.get(i)) for i, text in enumerate(turns)
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


def test_rows_with_pictures(language: LanguageModel) -> None:
    slots = language.model.config.vision_config.max_num_tiles
    for tiles in [n for n in SIZES if n <= slots]:
        check(language, [row(language, "Cards?", '"K", 3', image=picture(*SIZES[tiles], seed=tiles))])


def test_text_mixes_with_pictures_in_a_batch(language: LanguageModel) -> None:
    shown = picture(33, 33, 1)
    rows = [
        row(language, "only text", "so it is"),
        row(language, "Cards?", "3*8", image=shown),
        row(language, "Cards?", "2*(7+5)", image=picture(64, 64, 2)),
        row(language, "more text", "1+1"),
    ]
    check(language, rows)
    for size in (1, 40, 90):
        check(language, rows, size)


def test_revision_turns_after_the_picture(language: LanguageModel) -> None:
    turns = ("Cards?", "3*7", "You failed. Again.", "3*8", "Once more.", "8*3")
    check(language, [row(language, *turns, image=picture(40, 40, 3)), row(language, *turns)])


def test_a_group_shares_prompt_and_picture(language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, other = picture(50, 50, 4), picture(50, 50, 5)
    rows = [row(language, "Cards?", answer, image=shown) for answer in ("3*8", "(4+4)*3", "1")]
    rows += [row(language, "Cards?", answer, image=other) for answer in ("3*8", "9")]
    batches = list(micro_batches(rows, 100_000, CPU, language.vision))
    assert len(batches) == 1
    ids = batches[0].tokens.ids
    assert int((ids == language.model.config.image_token_index).sum()) == 2, "a prompt stands once a picture"
    calls = []
    tower = type(language.model.model.vision_model).forward
    monkeypatch.setattr(
        type(language.model.model.vision_model), "forward",
        lambda self, *a, **k: calls.append(len(k["pixel_values"])) or tower(self, *a, **k),
    )  # fmt: skip
    token_logprobs(language.model, batches[0].tokens)
    assert calls == [2], "the tower runs once for each picture"
    monkeypatch.undo()
    check(language, rows)


def test_gradients_are_transformers(four: LanguageModel) -> None:
    shown = picture(56, 56, 6)
    rows = [row(four, "Cards?", answer, image=shown) for answer in ("3*8", "(4+4)*3")] + [row(four, "a", "b")]
    model = four.model
    model.zero_grad()
    cross_entropy_step(model, rows, 100_000, four.vision)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = sum(sum(one.trained) for one in rows)
    for one in rows:
        (-logprobs(four, one.ids, one.images)[torch.tensor(one.trained[1:])].sum() / total).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            assert torch.allclose(found[name], parameter.grad, atol=1e-4 * scale + 1e-7), name
    model.zero_grad()


def test_packed_gradients_are_those_of_each_row_alone(language: LanguageModel) -> None:
    """In float64, the tower's and the projector's among them: answers share prompt and picture, text mixes in."""
    exactly = replace(language, model=exact(copy.deepcopy(language.model)))
    assert exactly.vision is not None
    shown, other = picture(50, 50, 4), picture(20, 90, 5)
    rows = [
        row(exactly, "Cards?", *turns, image=shown) for turns in (["3*8"], ["4", "Again.", "(4+4)*3"], ["1"])
    ]
    rows += [row(exactly, "Cards?", answer, image=other) for answer in ("3*8", "9")] + [
        row(exactly, "a", "b")
    ]
    (batch,) = micro_batches(rows, 100_000, CPU, exactly.vision)
    rows = [rows[i] for i in batch.rows]
    found, _ = token_logprobs(exactly.model, batch.tokens)
    expected = torch.cat([exact_logprobs(exactly, one) for one in rows])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.arange(1, len(found) + 1) / len(found)
    gradients = []
    for values in (found, expected):
        exactly.model.zero_grad()
        (values * weight).sum().backward()
        gradients.append({name: p.grad for name, p in exactly.model.named_parameters() if p.grad is not None})
    assert any("vision_model" in name for name in gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9, msg=name)


def exact_logprobs(language: LanguageModel, one: Row) -> torch.Tensor:
    """Of the row's trained tokens, by transformers, from the pixels that packed rows see."""
    inputs = theirs(language, one.ids, one.images)
    if one.images:
        assert isinstance(language.vision, Mllama)
        inputs["pixel_values"] = language.vision.tiles(one.images, torch.float64, CPU).pixels
    logits = language.model(**inputs, use_cache=False).logits[0, :-1]
    wanted = torch.tensor(one.trained[1:])
    targets = torch.tensor(one.ids[1:])[wanted]
    return logits[wanted].log_softmax(-1).gather(1, targets[:, None])[:, 0]


def test_a_later_picture_takes_the_place_of_the_first(four: LanguageModel) -> None:
    """Transformers lets the header ahead of the first picture see those that come later too, so only the tokens from
    the second picture on are its own; what they see of the first picture's text is not."""
    first, second = picture(28, 28, 7), picture(40, 40, 8)
    one = row(four, "Cards?", "3*8", "And these?", "7+5", image=first, later=second)
    swapped = row(four, "Cards?", "3*8", "And these?", "7+5", image=first, later=picture(40, 40, 9))
    values = []
    for r in (one, swapped):
        (batch,) = micro_batches([r], 10_000, CPU, four.vision)
        values.append(token_logprobs(four.model, batch.tokens)[0])
    cut = len(four.chat.answer_ids("3*8"))
    assert torch.equal(values[0][:cut], values[1][:cut]), "what stands before a picture does not see it"
    assert not torch.allclose(values[0][cut:], values[1][cut:])


def test_an_answer_cannot_hold_the_image_token(four: LanguageModel) -> None:
    config = four.model.config
    assert four.model.lm_head.weight.shape[0] == config.image_token_index
    for text in (IMAGE_TOKEN, f"a{IMAGE_TOKEN}{IMAGE_TOKEN}b"):
        assert config.image_token_index not in four.chat.answer_ids(text)
        assert config.image_token_index not in four.chat.prompt_ids(text)
        assert four.chat.prompt_ids(text, picture(9, 9, 0)).count(config.image_token_index) == 1
        replied = four.chat.reply_ids(text, stopped=True, image=picture(9, 9, 0))
        assert replied.count(config.image_token_index) == 1


def test_as_many_pictures_as_image_tokens(four: LanguageModel) -> None:
    good = row(four, "Cards?", "3*8", image=picture(9, 9, 0))
    for images in ((), (*good.images, *good.images)):
        bad = Row(good.ids, good.trained, images=images, prompt=good.prompt)
        (batch,) = micro_batches([bad], 10_000, CPU, four.vision)
        if images:
            with pytest.raises(UserError, match="1 image tokens and 2 pictures"):
                token_logprobs(four.model, batch.tokens)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pictures_of_another_form_are_refused(four: LanguageModel, image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"image is .*; needed: uint8 \[height, width, 3\]"):
        four.chat.prompt_ids("Cards?", image)


def test_one_pixel_is_a_picture(four: LanguageModel) -> None:
    check(
        four,
        [row(four, "Cards?", "1", image=picture(1, 1, 0)), row(four, "x", "y", image=picture(1, 112, 0))],
    )


def test_a_model_of_text_sees_no_pictures() -> None:
    with pytest.raises(UserError, match="which this model cannot see"):
        load("tiny", device="cpu").chat.prompt_ids("Cards?", picture(9, 9, 0))


def test_a_saved_model_comes_back(four: LanguageModel, tmp_path: Path) -> None:
    save(four.model, four.tokenizer, tmp_path / "m", four.vision)
    copy = load(str(tmp_path / "m"), device="cpu")
    assert copy.vision == four.vision
    assert copy.max_context == 512
    one = row(four, "Cards?", "3*8", image=picture(70, 70, 1))
    assert row(copy, "Cards?", "3*8", image=picture(70, 70, 1)).ids == one.ids
    with torch.no_grad():
        for language in (four, copy):
            check(language, [one])
        check_head(copy.model, copy.chat.prompt_ids("Cards?"))


def test_a_processor_that_does_not_fit_is_named(four: LanguageModel) -> None:
    with pytest.raises(UserError, match="makes 1 tiles of 28 pixels and its vision tower takes 4"):
        Mllama.of(four.model.config, four.tokenizer, processor(1))
    with pytest.raises(UserError, match=r"tokenizer has <\|image\|> at"):
        Mllama.of(four.model.config, load("tiny", device="cpu").tokenizer, processor(4))


def test_tiles_are_the_processors(four: LanguageModel) -> None:
    assert isinstance(four.vision, Mllama)
    images = [picture(20, 90, 1), picture(56, 56, 2), picture(5, 5, 3)]
    ours = four.vision.tiles(images, torch.float32, CPU)
    for place, image in enumerate(images):
        ids = four.chat.prompt_ids("x", image)
        found = theirs(four, ids, [image])
        assert torch.allclose(ours.pixels[place : place + 1], found["pixel_values"], atol=0.016)
        assert torch.equal(ours.ratio_ids[place : place + 1], found["aspect_ratio_ids"])
        assert torch.equal(ours.mask()[place : place + 1], found["aspect_ratio_mask"])
