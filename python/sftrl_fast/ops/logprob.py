"""Log-probability of given tokens and entropy of their distributions, straight from hidden states.

The SFT loss, the policy losses and old and reference log-probabilities all go through :func:`logprob`. The
logits ``[T, V]`` never exist whole: forward and backward walk over tiles of them, and backward computes each
tile again instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sftrl_fast.core import NotFiniteError, UserError
from sftrl_fast.ops.dispatch import resolve

TILE_BYTES = 2 << 20
"""Size of one tile of logits. 2 MiB was the fastest of 0.5 to 32 MiB on a core with a 2 MiB L2 cache; forward
holds two tiles at a time and backward two."""
MAX_TILE_VOCAB = 4096
"""Columns of a tile; a wider vocabulary is walked in several, so that its float32 copy stays small too."""


def logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Natural-log probability of ``targets`` under ``softmax(hidden @ weight.T / temperature)``, and entropy.

    ``hidden`` ``[T, D]`` and ``weight`` ``[V, D]`` share one floating type and device, ``targets`` is int64
    ``[T]``. Returns ``(logp, entropy)``, float32 ``[T]`` each, in nats (float64 for float64 input). Sums run
    in float32 whatever the input type. Both outputs are differentiable once, in hidden and weight.

    Raises :class:`UserError` for wrong shapes, types or devices, a temperature that is not positive, targets
    outside ``[0, V)`` and rows whose logits hold a NaN or an infinity.
    """
    _check(hidden, weight, targets, temperature)
    logp, entropy = resolve("logprob", impl, hidden)(hidden, weight, targets, temperature)
    bad = torch.isnan(logp.detach())
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise NotFiniteError(
            f"hidden, weight: the logits of row {row} are not finite ({int(bad.sum())} such rows)"
        )
    return logp, entropy


@torch.no_grad()
def logprob_scores(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`logprob` for scoring only: no graph is kept."""
    return logprob(hidden, weight, targets, temperature=temperature, impl=impl)


def logprob_torch(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`logprob`."""
    logp, entropy = _Logprob.apply(hidden, weight, targets, temperature)
    return logp, entropy


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        shapes = f"{list(hidden.shape)} and {list(weight.shape)}"
        raise UserError(f"hidden and weight have shapes {shapes}; needed: [T, D] and [V, D] with V > 0")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise UserError(
            f"targets is {targets.dtype} {list(targets.shape)}; needed: torch.int64 [{hidden.shape[0]}]"
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise UserError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; needed: one floating type for both"
        )
    if not hidden.device == weight.device == targets.device:
        devices = f"{hidden.device}, {weight.device}, {targets.device}"
        raise UserError(f"hidden, weight and targets are on {devices}; needed: one device")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; needed: a positive finite number")
    if targets.numel():
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= weight.shape[0]:
            raise UserError(
                f"targets hold {low if low < 0 else high}; needed: token ids in [0, {weight.shape[0]})"
            )


def _blocks(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


class _Tiles:
    """The walk over ``[T, V]`` that forward and backward share: vocabulary blocks outside, so that a block's
    float32 copy is made once, row blocks inside."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> None:
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.hidden, self.weight, self.targets = hidden, weight, targets
        self.scale = 1.0 / temperature
        vocab, itemsize = weight.shape[0], self.dtype.itemsize
        self.columns = list(_blocks(vocab, MAX_TILE_VOCAB))
        self.rows = list(
            _blocks(hidden.shape[0], max(1, TILE_BYTES // (min(vocab, MAX_TILE_VOCAB) * itemsize)))
        )

    def logits(self, rows: slice, block: Tensor) -> Tensor:
        """``[rows, columns]`` in the accumulation type, which ``block`` (of the vocabulary) has already."""
        return (self.hidden[rows].to(self.dtype) * self.scale) @ block.T

    def place(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Column of each row's target within the block, and whether it is in there; both ``[rows, 1]``."""
        column = (self.targets[rows] - columns.start).unsqueeze(1)
        inside = (column >= 0) & (column < columns.stop - columns.start)
        return column.clamp_(0, columns.stop - columns.start - 1), inside


class _Logprob(torch.autograd.Function):
    """Saves the row statistics and nothing of size ``[T, V]``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(hidden, weight, targets, temperature)
        # Running over the vocabulary blocks: largest logit m, sum of exp(z - m), sum of (z - m) exp(z - m),
        # target's logit, all [T, 1].
        top = hidden.new_full((hidden.shape[0], 1), float("-inf"), dtype=tiles.dtype)
        total, weighted, chosen = (torch.zeros_like(top) for _ in range(3))
        for columns in tiles.columns:
            block = weight[columns].to(tiles.dtype)
            for rows in tiles.rows:
                z = tiles.logits(rows, block)
                column, inside = tiles.place(rows, columns)
                chosen[rows] += torch.where(inside, z.gather(1, column), 0)
                new_top = torch.maximum(top[rows], z.amax(1, keepdim=True))
                e = z.sub_(new_top).exp()
                # The first block finds a running maximum of -inf: nothing is there to be rescaled.
                shift = torch.where(total[rows] > 0, top[rows] - new_top, 0)
                weighted[rows] = (weighted[rows] + shift * total[rows]) * shift.exp()
                total[rows] *= shift.exp()
                weighted[rows] += torch.linalg.vecdot(e, z).unsqueeze(1)
                total[rows] += e.sum(1, keepdim=True)
                top[rows] = new_top
        log_total = total.log()
        # H = log sum exp(z) - sum p z, with z counted from its maximum; rounding may leave -1e-8.
        entropy = (log_total - weighted / total).clamp_min_(0)
        lse = top + log_total
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return (chosen - lse).squeeze(1), entropy.squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        tiles = _Tiles(hidden, weight, targets, ctx.temperature)
        grad_hidden = torch.zeros_like(hidden, dtype=tiles.dtype) if want_hidden else None
        grad_weight = torch.empty_like(weight) if want_weight else None
        for columns in tiles.columns:
            block = weight[columns].to(tiles.dtype)
            grad_block = torch.zeros_like(block)
            for rows in tiles.rows:
                d = _grad_logits(tiles, rows, columns, block, lse, entropy, grad_logp, grad_entropy)
                if grad_hidden is not None:
                    grad_hidden[rows].addmm_(d, block)
                if grad_weight is not None:
                    grad_block.addmm_(d.T, hidden[rows].to(tiles.dtype))
            if grad_weight is not None:
                grad_weight[columns] = grad_block
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, None, None


def _grad_logits(
    tiles: _Tiles,
    rows: slice,
    columns: slice,
    block: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Gradient of one tile of ``hidden @ weight.T``.

    With p the softmax: d logp / d z_j = [j = target] - p_j and d H / d z_j = -p_j (log p_j + H).
    """
    logp = tiles.logits(rows, block).sub_(lse[rows])
    slope: Tensor | float = 0.0
    if grad_logp is not None:
        slope = grad_logp[rows].unsqueeze(1) * -tiles.scale
    if grad_entropy is None:
        d = logp.exp_().mul_(slope)
    else:
        p = logp.exp()
        bend = grad_entropy[rows].unsqueeze(1) * tiles.scale
        d = logp.add_(entropy[rows]).mul_(-bend).add_(slope).mul_(p)
    if grad_logp is not None:
        column, inside = tiles.place(rows, columns)
        d.scatter_add_(1, column, torch.where(inside, -slope, 0))
    return d
