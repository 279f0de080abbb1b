"""How token losses become one number.

A reduction looks at the answer lengths of the WHOLE batch and says how much each token of each row weighs;
the batch loss is the sum over tokens of weight times token loss. Micro-batches of rows then just add up, in
any cut, to the loss and gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sftrl_fast.core import UserError

Reduction = Callable[[Tensor, int], Tensor]


def token_mean(lengths: Tensor, max_length: int) -> Tensor:  # noqa: ARG001 - one signature for the table
    """1 / all trained tokens of the batch: every token counts the same (DAPO, arXiv 2503.14476, eq. 12)."""
    return torch.where(lengths > 0, 1 / lengths.sum(), 0.0)


def sequence_mean(lengths: Tensor, max_length: int) -> Tensor:  # noqa: ARG001
    """1 / (rows * own length): every row counts the same (GRPO, arXiv 2402.03300, eq. 3)."""
    return torch.where(lengths > 0, 1 / (lengths * (lengths > 0).sum()), 0.0)


def sequence_sum(lengths: Tensor, max_length: int) -> Tensor:  # noqa: ARG001
    """1 / rows: the mean over rows of the whole answer's sum (RLOO, arXiv 2402.14740)."""
    return torch.where(lengths > 0, 1 / (lengths > 0).sum(), 0.0)


def constant(lengths: Tensor, max_length: int) -> Tensor:
    """1 / (rows * max_length): the length of an answer does not change the weight of its tokens
    (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    return torch.where(lengths > 0, 1 / ((lengths > 0).sum() * max_length), 0.0)


REDUCTIONS: Mapping[str, Reduction] = MappingProxyType(
    {
        "token_mean": token_mean,
        "sequence_mean": sequence_mean,
        "sequence_sum": sequence_sum,
        "constant": constant,
    }
)


def token_weights(name: str, lengths: Tensor, *, max_length: int) -> Tensor:
    """What one token of each row weighs, float32 ``[R]``, from the trained-token counts of the whole batch.

    ``lengths`` is int64 ``[R]``; rows with nothing to train weigh 0 and are not counted. ``max_length`` (the
    most tokens a row can train) is read by ``constant`` only. Raises :class:`UserError` for an unknown name,
    lengths that are no counts and a ``max_length`` below 1.
    """
    if name not in REDUCTIONS:
        raise UserError(f"reduction is {name!r}; needed: one of {', '.join(REDUCTIONS)}")
    if lengths.dim() != 1 or lengths.dtype != torch.int64 or bool((lengths < 0).any()):
        raise UserError(
            f"lengths is {lengths.dtype} {list(lengths.shape)}; needed: torch.int64 [R], all >= 0"
        )
    if max_length < 1:
        raise UserError(f"max_length is {max_length}; needed: at least 1 token")
    return REDUCTIONS[name](lengths, max_length).float()
