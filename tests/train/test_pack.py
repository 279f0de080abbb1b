from __future__ import annotations

import torch

from sftrl_fast.core import Episode, Group, Message, Row, Turn, Verdict
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.train.pack import dialogue_row, episode_rows, micro_batches

CPU = torch.device("cpu")


def _row(length: int) -> Row:
    return Row(list(range(length)), [i >= length // 2 for i in range(length)])


def test_micro_batches_hold_every_row_once_and_respect_the_bound() -> None:
    rows = [_row(length) for length in (3, 9, 4, 4, 7, 1, 2)]
    batches = list(micro_batches(rows, 18, CPU))
    assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
    for batch in batches:
        assert batch.ids.numel() <= 18
        for place, index in enumerate(batch.rows):
            length = len(rows[index].ids)
            assert batch.ids[place, :length].tolist() == rows[index].ids
            assert batch.trained[place, :length].tolist() == rows[index].trained
            assert not batch.trained[place, length:].any()


def test_a_row_longer_than_the_bound_goes_alone() -> None:
    batches = list(micro_batches([_row(3), _row(9), _row(4)], 8, CPU))
    assert [batch.rows for batch in batches] == [[1], [2, 0]]


def test_an_episode_becomes_one_row_of_the_sampled_tokens() -> None:
    verdict = Verdict(-1.0, 1, False, "again")
    turns = [
        Turn([5, 6], [7, 8], [-0.1, -0.2], "x", True, verdict),
        Turn([9], [3], [-0.3], "y", True, verdict),
    ]
    row = episode_rows([Group(0, [Episode(0, 0, turns)])], [2.5])[0]
    assert row.ids == [5, 6, 7, 8, 9, 3]
    assert row.trained == [False, False, True, True, False, True]
    assert row.old_logprobs == [-0.1, -0.2, -0.3]
    assert row.advantage == 2.5


def test_a_given_dialogue_trains_the_marked_answers_only(tiny: LanguageModel) -> None:
    wrong, right = Message("assistant", "no", trained=False), Message("assistant", "yes")
    row = dialogue_row(tiny.chat, [Message("user", "a"), wrong, Message("user", "b"), right])
    text = [tiny.tokenizer.decode([token]) for token, on in zip(row.ids, row.trained, strict=True) if on]
    assert "".join(text) == "yes<|end|>"
    whole = tiny.tokenizer.decode(row.ids)
    assert whole == "<|user|>a<|end|><|assistant|>no<|end|><|user|>b<|end|><|assistant|>yes<|end|>"
