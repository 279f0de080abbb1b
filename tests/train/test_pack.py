from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.core import Episode, Group, Message, Row, Turn, Verdict
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.train.pack import TokenBatch, dialogue_row, episode_rows, micro_batches

CPU = torch.device("cpu")


def _row(length: int, prompt: int = 0, first: int = 0) -> Row:
    """Tokens ``first, first + 1, ...``; those after the prompt are trained (the first half without one)."""
    ids = list(range(first, first + prompt)) + [100 * first + i for i in range(prompt, length)]
    return Row(ids, [i >= max(prompt, length // 2, 1) for i in range(length)], prompt=prompt)


def _unpack(batch: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """(tokens, positions) of every row, its shared prompt put back."""
    tokens = batch.tokens
    ends, parents = tokens.layout.offsets.tolist(), tokens.layout.parent.tolist()
    segments = [slice(a, b) for a, b in itertools.pairwise(ends)]
    rows = []
    for number, (segment, parent) in enumerate(zip(segments, parents, strict=True)):
        if number in parents:
            continue
        parts = [segment] if parent < 0 else [segments[parent], segment]
        rows.append(
            tuple([x for part in parts for x in t[part].tolist()] for t in (tokens.ids, tokens.positions))
        )
    return rows


def _trained(row: Row) -> list[int]:
    return [token for token, on in zip(row.ids, row.trained, strict=True) if on]


@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=12),
    bound=st.integers(1, 60),
)  # fmt: skip
@settings(deadline=None)
def test_micro_batches_hold_every_row_once_and_respect_the_bound(
    shapes: list[tuple[int, int, int]], bound: int
) -> None:
    rows = [_row(prompt + own, prompt, first) for prompt, own, first in shapes]
    batches = list(micro_batches(rows, bound, CPU))
    assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
    for batch in batches:
        assert len(batch.tokens.ids) <= bound or len(batch.rows) == 1
        assert batch.counts.tolist() == [sum(rows[i].trained) for i in batch.rows]
        for index, (ids, positions) in zip(batch.rows, _unpack(batch), strict=True):
            assert ids == rows[index].ids
            assert positions == list(range(len(ids)))
        assert batch.tokens.targets.tolist() == [t for i in batch.rows for t in _trained(rows[i])]
        before = [
            t for i in batch.rows for t, on in zip(rows[i].ids, rows[i].trained[1:], strict=False) if on
        ]
        assert batch.tokens.ids[batch.tokens.source].tolist() == before


def test_a_prompt_stands_once_for_all_its_rows() -> None:
    rows = [_row(9, 5, 1), _row(7, 5, 1), _row(6, 5, 2), _row(8, 5, 1)]
    (batch,) = micro_batches(rows, 1000, CPU)
    assert batch.rows == [0, 1, 3, 2]
    assert len(batch.tokens.ids) == 5 + 4 + 2 + 3 + 6
    assert batch.tokens.layout.parent.tolist() == [-1, 0, 0, 0, -1]


def test_a_row_longer_than_the_bound_goes_alone() -> None:
    batches = list(micro_batches([_row(3), _row(9), _row(4)], 8, CPU))
    assert [batch.rows for batch in batches] == [[0], [1], [2]]


def test_an_episode_becomes_one_row_of_the_sampled_tokens() -> None:
    verdict = Verdict(-1.0, 1, False, "again")
    turns = [
        Turn([5, 6], [7, 8], [-0.1, -0.2], "x", True, verdict),
        Turn([9], [3], [-0.3], "y", True, verdict),
    ]
    row = episode_rows([Group(0, [Episode(0, 0, turns)])])[0]
    assert row.ids == [5, 6, 7, 8, 9, 3]
    assert row.trained == [False, False, True, True, False, True]
    assert row.old_logprobs == row.sampled_logprobs == [-0.1, -0.2, -0.3]
    assert row.turns == [2, 1]
    assert row.prompt == 2


def test_a_given_dialogue_trains_the_marked_answers_only(tiny: LanguageModel) -> None:
    wrong, right = Message("assistant", "no", trained=False), Message("assistant", "yes")
    row = dialogue_row(tiny.chat, [Message("user", "a"), wrong, Message("user", "b"), right])
    text = [tiny.tokenizer.decode([token]) for token, on in zip(row.ids, row.trained, strict=True) if on]
    assert "".join(text) == "yes<|end|>"
    assert row.prompt == row.trained.index(True)
    whole = tiny.tokenizer.decode(row.ids)
    assert whole == "<|user|>a<|end|><|assistant|>no<|end|><|user|>b<|end|><|assistant|>yes<|end|>"
