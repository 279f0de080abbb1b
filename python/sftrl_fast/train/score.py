"""What the policy says about rows as it stands: log-probabilities, and a critic's values, without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftrl_fast.core import Row
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.value_head import ValueHead, logprobs_and_values
from sftrl_fast.train.pack import TokenBatch, micro_batches


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry a row, in the order of the rows."""

    logprobs: list[list[float]]
    """One number a trained token."""
    values: list[list[float]]
    """One number a turn; empty lists without a critic."""
    executed_tokens: int


def first_of_turns(rows: Sequence[Row]) -> Tensor:
    """The place of each turn's first token among all trained tokens of ``rows``, int64 ``[N]``."""
    lengths = torch.tensor([length for row in rows for length in row.turns], dtype=torch.int64)
    return lengths.cumsum(0) - lengths


def outputs(
    model: CausalLM, head: ValueHead | None, batch: TokenBatch, rows: Sequence[Row], temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability and entropy of each trained token, and with ``head`` the value before each turn.

    ``rows`` are those of the batch, in its order.
    """
    if head is None:
        return *token_logprobs(model, batch.tokens, temperature=temperature), None
    first = first_of_turns(rows).to(model.device)
    return logprobs_and_values(model, head, batch.tokens, first, temperature=temperature)


@torch.no_grad()
def score(
    model: CausalLM, head: ValueHead | None, rows: Sequence[Row], max_tokens: int, *, temperature: float = 1.0
) -> Scores:
    """Log-probabilities under ``temperature`` and values of all of ``rows``."""
    logprobs: list[list[float]] = [[] for _ in rows]
    values: list[list[float]] = [[] for _ in rows]
    executed = 0
    for batch in micro_batches(rows, max_tokens, model.device):
        members = [rows[index] for index in batch.rows]
        logp, _, expected = outputs(model, head, batch, members, temperature)
        parts = logp.cpu().split(batch.counts.tolist())
        for index, part in zip(batch.rows, parts, strict=True):
            logprobs[index] = part.tolist()
        if expected is not None:
            turns = expected.cpu().split([len(row.turns) for row in members])
            for index, part in zip(batch.rows, turns, strict=True):
                values[index] = part.tolist()
        executed += len(batch.tokens.ids)
    return Scores(logprobs, values, executed)
