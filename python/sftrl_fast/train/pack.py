"""Rows to batches: cut a step's rows into packed micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftrl_fast.core import Dialogue, Group, Image, Row
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.models.vision import Pictures, Vision
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
    images: list[Image] = []
    prompt_images = 0
    for message in dialogue:
        if message.role == "assistant":
            new = chat.answer_ids(message.text)
        else:
            new = (
                chat.reply_ids(message.text, stopped=True, image=message.image)
                if ids
                else chat.prompt_ids(message.text, message.image)
            )
            if message.image is not None:
                images.append(message.image)
                prompt_images += True not in trained
        ids += new
        trained += [message.role == "assistant" and message.trained] * len(new)
    prompt = trained.index(True) if True in trained else 0
    return Row(
        ids, trained, prompt=prompt, images=tuple(images), prompt_images=prompt_images if prompt else 0
    )


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
        images = tuple(turn.image for turn in episode.turns if turn.image is not None)
        seen = int(episode.turns[0].image is not None)
        rows.append(
            Row(
                ids, trained, prompt, lengths, logprobs, logprobs, images=images, prompt_images=seen,
                demonstrated=episode.demonstrated,
            )
        )  # fmt: skip
    return rows


def micro_batches(
    rows: Sequence[Row], max_tokens: int, device: torch.device, vision: Vision | None = None
) -> Iterator[TokenBatch]:
    """All of ``rows`` in batches of at most ``max_tokens`` packed tokens; a row longer than that goes alone.

    Rows with one prompt stand together and share its tokens; where a batch ends between them, the next one begins
    with the prompt again. ``vision`` is needed for rows with pictures; each counts ``vision.positions``.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        shown = (-1 - id(image) for image in row.images[: row.prompt_images])
        families.setdefault((*row.ids[: row.prompt], *shown), []).append(index)
    batch: list[list[int]] = []
    tokens = 0
    for members in families.values():
        opened = False
        for index in members:
            row = rows[index]
            taken = [0 if vision is None else vision.positions(image) for image in row.images]
            prompt = row.prompt + sum(taken[: row.prompt_images])
            own = len(row.ids) + sum(taken) - prompt
            if batch and tokens + own + (0 if opened else prompt) > max_tokens:
                yield _pack(rows, batch, device, vision)
                batch, tokens, opened = [], 0, False
            if not opened:
                batch.append([])
                tokens += prompt
                opened = True
            batch[-1].append(index)
            tokens += own
    if batch:
        yield _pack(rows, batch, device, vision)


def _pack(
    rows: Sequence[Row], families: Sequence[Sequence[int]], device: torch.device, vision: Vision | None
) -> TokenBatch:
    """Each family is rows of one prompt: the prompt as a segment of its own, then what each row adds to it.

    So is a sampled row that stands alone: the engine's cache was cut there, and equal cuts give equal bits.
    """
    packer = _Packer()
    for members in families:
        first = rows[members[0]]
        shared = first.prompt if len(members) > 1 or first.sampled_logprobs else 0
        seen = first.prompt_images if shared else 0
        parent = packer.segment(first.ids[:shared], 0, -1, first.images[:seen]) if shared else -1
        for index in members:
            packer.row(rows[index], shared, parent, seen)
    order = [index for members in families for index in members]
    counts = torch.tensor([sum(rows[index].trained) for index in order])
    return TokenBatch(order, counts, packer.tokens(device, vision))


class _Packer:
    """Lists that grow by a segment at a time."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.offsets, self.parents = [0], list[int]()
        self.source: list[int] = []
        self.targets: list[int] = []
        self.images: list[Image] = []

    def segment(self, ids: Sequence[int], position: int, parent: int, images: Sequence[Image]) -> int:
        """Append tokens that stand at ``position`` of their row and see segment ``parent``; the segment's number."""
        self.ids += ids
        self.images += images
        self.positions += range(position, position + len(ids))
        self.offsets.append(len(self.ids))
        self.parents.append(parent)
        return len(self.parents) - 1

    def row(self, row: Row, shared: int, parent: int, seen: int) -> None:
        """Append a row whose first ``shared`` tokens and ``seen`` pictures are segment ``parent``."""
        begin = len(self.ids)
        self.segment(row.ids[shared:], shared, parent, row.images[seen:])
        for place in range(shared, len(row.ids)):
            if row.trained[place]:
                before = self.offsets[parent + 1] if place == shared else begin + place - shared
                self.source.append(before - 1)
                self.targets.append(row.ids[place])

    def tokens(self, device: torch.device, vision: Vision | None) -> PackedTokens:
        def column(numbers: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(numbers, dtype=dtype, device=device)

        layout = PackedRows(column(self.offsets, torch.int32), column(self.parents, torch.int32))
        layout.check(len(self.ids))
        pictures = Pictures(vision, tuple(self.images)) if vision is not None and self.images else None
        return PackedTokens(
            column(self.ids),
            column(self.positions),
            layout,
            column(self.source),
            column(self.targets),
            pictures,
        )
