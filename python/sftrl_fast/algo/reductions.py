"""How token losses become one number.

A reduction looks at the answer lengths of the WHOLE batch and says how much each token of each turn weighs;
the batch loss is the sum over tokens of weight times token loss. Micro-batches of rows then just add up, in
any cut, to the loss and gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from sftrl_fast.core import UserError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Trained tokens of each turn of a batch, and whose turn it is; int64 ``[N]`` both."""

    turns: Tensor
    row: Tensor

    @property
    def rows(self) -> Tensor:
        """Trained tokens of the row that each turn belongs to, int64 ``[N]``."""
        size = int(self.row.max()) + 1 if len(self.row) else 0
        return self.turns.new_zeros(size).index_add_(0, self.row, self.turns)[self.row]

    @property
    def num_rows(self) -> int:
        """Rows that train something."""
        return len(self.row[self.turns > 0].unique())


Reduction = Callable[[Lengths, int], Tensor]


def token_mean(lengths: Lengths, max_length: int) -> Tensor:  # noqa: ARG001 - one signature for the table
    """1 / all trained tokens of the batch: every token counts the same (DAPO, arXiv 2503.14476, eq. 12)."""
    return torch.ones(len(lengths.turns)) / lengths.turns.sum()


def turn_mean(lengths: Lengths, max_length: int) -> Tensor:  # noqa: ARG001
    """1 / (turns * own length): every answer counts the same."""
    return 1 / (lengths.turns * (lengths.turns > 0).sum())


def sequence_mean(lengths: Lengths, max_length: int) -> Tensor:  # noqa: ARG001
    """1 / (rows * own length): every row counts the same (GRPO, arXiv 2402.03300, eq. 3)."""
    return 1 / (lengths.rows * lengths.num_rows)


def sequence_sum(lengths: Lengths, max_length: int) -> Tensor:  # noqa: ARG001
    """1 / rows: the mean over rows of the whole answer's sum (RLOO, arXiv 2402.14740)."""
    return torch.ones(len(lengths.turns)) / lengths.num_rows


def constant(lengths: Lengths, max_length: int) -> Tensor:
    """1 / (rows * max_length): the length of an answer does not change the weight of its tokens
    (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    return torch.ones(len(lengths.turns)) / (lengths.num_rows * max_length)


REDUCTIONS: Mapping[str, Reduction] = MappingProxyType(
    {
        "token_mean": token_mean,
        "turn_mean": turn_mean,
        "sequence_mean": sequence_mean,
        "sequence_sum": sequence_sum,
        "constant": constant,
    }
)


def token_weights(name: str, turns: Tensor, row: Tensor, *, max_length: int) -> Tensor:
    """What one token of each turn weighs, float32 ``[N]``, from the trained-token counts of the whole batch.

    ``turns`` and ``row`` are int64 ``[N]`` on the CPU, see :class:`Lengths`; turns and rows with nothing to train
    weigh 0 and are not counted. ``max_length`` (the most tokens a row can train) is read by ``constant`` only. Raises
    :class:`UserError` for an unknown name, lengths that are no counts and a ``max_length`` below 1.
    """
    if name not in REDUCTIONS:
        raise UserError(f"reduction is {name!r}; needed: one of {', '.join(REDUCTIONS)}")
    for key, counts in (("turns", turns), ("row", row)):
        if counts.shape != turns.shape[:1] or counts.dtype != torch.int64 or bool((counts < 0).any()):
            raise UserError(
                f"{key} is {counts.dtype} {list(counts.shape)}; needed: torch.int64 [N], all >= 0"
            )
    if max_length < 1:
        raise UserError(f"max_length is {max_length}; needed: at least 1 token")
    weights = REDUCTIONS[name](Lengths(turns, row), max_length)
    return torch.where(turns > 0, weights, 0.0).float()
