from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from sftrl_fast.core import Dialogue
from sftrl_fast.models.load import load
from sftrl_fast.models.tiny import ASSETS
from sftrl_fast.tasks import corpora
from sftrl_fast.train.pack import dialogue_row


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return list(islice(corpora.stream("points", np.random.default_rng(7)), 300))


def test_shipped_model_is_about_a_million_parameters_and_fits_ten_megabytes() -> None:
    language = load("tiny", device="cpu")
    assert 0.5e6 < language.num_parameters < 2e6
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 10e6


def test_every_number_is_one_token() -> None:
    tokenizer = load("tiny", device="cpu").tokenizer
    for number in range(100):
        assert len(tokenizer(str(number), add_special_tokens=False)["input_ids"]) == 1


def test_single_turn_rows_take_at_most_sixty_tokens(dialogues: list[Dialogue]) -> None:
    chat = load("tiny", device="cpu").chat
    lengths = [len(dialogue_row(chat, d).ids) for d in dialogues if len(d) == 2]
    assert lengths
    assert max(lengths) <= 60


def test_any_text_comes_back_from_its_tokens() -> None:
    chat = load("tiny", device="cpu").chat
    for text in ("", "Grüße, 12*(3-1) ≠ 25 🂡\n\t", '{"cards": ["A", "10"]}', "K J Q 007 -1"):
        assert chat.decode(chat.answer_ids(text)) == text


def test_the_corpus_never_shows_an_evaluation_hand_at_its_target(dialogues: list[Dialogue]) -> None:
    from sftrl_fast.tasks.general_points.corpus import _is_held_out
    from sftrl_fast.tasks.general_points.deal import deal
    from sftrl_fast.tasks.general_points.rules import RULES

    for rule, part, with_face in (
        ("face10", "test", None),
        ("face10", "validation", None),
        ("face11-13", "all", True),
    ):
        for ranks in deal(rule, 24, part, with_face=with_face).tolist():
            assert _is_held_out(ranks, RULES[rule], 24)
            assert not _is_held_out(ranks, RULES[rule], 23)
    assert {len(d) for d in dialogues} == {2, 4, 6, 8}


def test_the_model_has_partial_skill_under_both_rules(dialogues: list[Dialogue]) -> None:
    """Its likelihood of right answers is far above chance: under 1.2 nats a token, and 1/600 a token is 6.4."""
    from sftrl_fast.models.causal_lm import token_logprobs
    from sftrl_fast.train.pack import micro_batches

    language = load("tiny", device="cpu")
    for rule in ("count as 10.", "count as 11, 12 and 13."):
        rows = [dialogue_row(language.chat, d) for d in dialogues if rule in d[0].text]
        with torch.no_grad():
            parts = [
                token_logprobs(language.model, b.tokens)[0]
                for b in micro_batches(rows, 4096, torch.device("cpu"))
            ]
        assert -float(torch.cat(parts).mean()) < 1.2
