"""Rows to batches: cut a step's rows into micro-batches of bounded size, longest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftrl_fast.core import Dialogue, Group, Row
from sftrl_fast.models.chat import Chat


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows side by side, padded on the right. ``rows[i]`` is the row's place in the step's list."""

    rows: list[int]
    ids: Tensor
    """int64 ``[B, L]``."""
    trained: Tensor
    """bool ``[B, L]``."""


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
    return Row(ids, trained)


def episode_rows(groups: Sequence[Group], advantages: Sequence[float]) -> list[Row]:
    """One row an episode: tokens as sampled, every answered token trained with the episode's advantage.

    ``advantages`` holds one value an episode, groups one after the other.
    """
    rows = []
    episodes = [episode for group in groups for episode in group.episodes]
    for episode, advantage in zip(episodes, advantages, strict=True):
        ids: list[int] = []
        trained: list[bool] = []
        logprobs: list[float] = []
        for turn in episode.turns:
            ids += turn.prompt_ids + turn.answer_ids
            trained += [False] * len(turn.prompt_ids) + [True] * len(turn.answer_ids)
            logprobs += turn.logprobs
        rows.append(Row(ids, trained, advantage, logprobs))
    return rows


def micro_batches(rows: Sequence[Row], max_tokens: int, device: torch.device) -> Iterator[TokenBatch]:
    """All of ``rows`` in batches of at most ``max_tokens`` positions, padding included.

    Sorted by length, so that little is padded. A row longer than ``max_tokens`` goes alone.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    start = 0
    while start < len(order):
        length = len(rows[order[start]].ids)
        chosen = order[start : start + max(1, max_tokens // length)]
        start += len(chosen)
        ids = torch.zeros(len(chosen), length, dtype=torch.int64)
        trained = torch.zeros(len(chosen), length, dtype=torch.bool)
        for place, index in enumerate(chosen):
            row = rows[index]
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            trained[place, : len(row.ids)] = torch.tensor(row.trained)
        yield TokenBatch(chosen, ids.to(device), trained.to(device))
