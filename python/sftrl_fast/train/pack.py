"""Rows to batches: cut a step's rows into packed micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftrl_fast.core import Dialogue, Group, Row
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.ops.attention import PackedRows


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some of a step's rows, packed."""

    rows: list[int]
    """Places in the step's list, in the order in which ``tokens.targets`` holds their trained tokens."""
    counts: Tensor
    """Trained tokens of each of ``rows``, int64."""
    tokens: PackedTokens


def dialogue_row(chat: Chat, dialogue: Dialogue) -> Row:
    """The tokens of a dialogue that is given; the assistant's turns marked ``trained`` are trained."""
    ids: list[int] = []
    trained: list[bool] = []
    for message in dialogue:
        if message.role == "assistant":
            new = chat.answer_ids(message.text)
        else:
            new = chat.reply_ids(message.text, stopped=True) if ids else chat.prompt_ids(message.text)
        ids += new
        trained += [message.role == "assistant" and message.trained] * len(new)
    return Row(ids, trained, prompt=trained.index(True) if True in trained else 0)


def episode_rows(groups: Sequence[Group]) -> list[Row]:
    """A row for each episode: all its turns, the answers trained, as they were sampled."""
    rows = []
    for episode in (episode for group in groups for episode in group.episodes):
        ids: list[int] = []
        trained: list[bool] = []
        logprobs: list[float] = []
        for turn in episode.turns:
            ids += turn.prompt_ids + turn.answer_ids
            trained += [False] * len(turn.prompt_ids) + [True] * len(turn.answer_ids)
            logprobs += turn.logprobs
        lengths = [len(turn.answer_ids) for turn in episode.turns]
        prompt = len(episode.turns[0].prompt_ids)
        rows.append(Row(ids, trained, prompt, lengths, logprobs, logprobs))
    return rows


def micro_batches(rows: Sequence[Row], max_tokens: int, device: torch.device) -> Iterator[TokenBatch]:
    """All of ``rows`` in batches of at most ``max_tokens`` packed tokens; a row longer than that goes alone.

    Rows with one prompt stand together and share its tokens; where a batch ends between them, the next one begins
    with the prompt again.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(tuple(row.ids[: row.prompt]), []).append(index)
    batch: list[list[int]] = []
    tokens = 0
    for prompt, members in families.items():
        opened = False
        for index in members:
            own = len(rows[index].ids) - len(prompt)
            if batch and tokens + own + (0 if opened else len(prompt)) > max_tokens:
                yield _pack(rows, batch, device)
                batch, tokens, opened = [], 0, False
            if not opened:
                batch.append([])
                tokens += len(prompt)
                opened = True
            batch[-1].append(index)
            tokens += own
    if batch:
        yield _pack(rows, batch, device)


def _pack(rows: Sequence[Row], families: Sequence[Sequence[int]], device: torch.device) -> TokenBatch:
    """Each family is rows of one prompt: the prompt as a segment of its own, then what each row adds to it."""
    packer = _Packer()
    for members in families:
        first = rows[members[0]]
        shared = first.prompt if len(members) > 1 else 0
        parent = packer.segment(first.ids[:shared], 0, -1) if shared else -1
        for index in members:
            packer.row(rows[index], shared, parent)
    order = [index for members in families for index in members]
    counts = torch.tensor([sum(rows[index].trained) for index in order])
    return TokenBatch(order, counts, packer.tokens(device))


class _Packer:
    """Lists that grow by a segment at a time."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.offsets, self.parents = [0], list[int]()
        self.source: list[int] = []
        self.targets: list[int] = []

    def segment(self, ids: Sequence[int], position: int, parent: int) -> int:
        """Append tokens that stand at ``position`` of their row and see segment ``parent``; the segment's number."""
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.offsets.append(len(self.ids))
        self.parents.append(parent)
        return len(self.parents) - 1

    def row(self, row: Row, shared: int, parent: int) -> None:
        """Append a row whose first ``shared`` tokens are segment ``parent``."""
        begin = len(self.ids)
        self.segment(row.ids[shared:], shared, parent)
        for place in range(shared, len(row.ids)):
            if row.trained[place]:
                before = self.offsets[parent + 1] if place == shared else begin + place - shared
                self.source.append(before - 1)
                self.targets.append(row.ids[place])

    def tokens(self, device: torch.device) -> PackedTokens:
        def column(numbers: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(numbers, dtype=dtype, device=device)

        layout = PackedRows(column(self.offsets, torch.int32), column(self.parents, torch.int32))
        layout.check(len(self.ids))
        return PackedTokens(
            column(self.ids), column(self.positions), layout, column(self.source), column(self.targets)
        )
