"""``logprob`` on the CPU: segments of the vocabulary, packed once a call and multiplied in tiles of 64 rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE


def logprob_cpp(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.logprob.logprob`."""
    logp, entropy = _Logprob.apply(hidden, weight, targets, temperature)
    return logp, entropy


def _inputs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, grad_hidden: bool, grad_weight: bool
) -> tuple[Tensor, tuple[Any, ...]]:
    """Scratch memory, to be kept while it is used, and ``LogprobInputs``."""
    (rows, width), vocab, kind, slots = hidden.shape, weight.shape[0], DTYPE[hidden.dtype], _C.max_threads()
    size = _C.logprob_scratch(rows, width, vocab, slots, kind, grad_hidden, grad_weight)
    scratch = torch.empty(size, dtype=torch.uint8)
    pointers = (t.data_ptr() for t in (hidden, weight, targets, scratch))
    return scratch, (*pointers, rows, width, vocab, 1.0 / temperature, slots, kind)


class _Logprob(torch.autograd.Function):
    """Saves the row statistics and nothing of size ``[T, V]``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        logp, entropy, lse = (torch.empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))
        scratch, inputs = _inputs(hidden, weight, targets, temperature, False, False)
        _C.logprob_forward(*inputs, *(t.data_ptr() for t in (logp, entropy, lse)))
        del scratch
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # Without rows the kernel writes no gradient.
        make = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = make(weight) if want_weight else None
        scratch, inputs = _inputs(hidden, weight, targets, ctx.temperature, want_hidden, want_weight)
        grads = tuple(None if grad is None else grad.contiguous() for grad in (grad_logp, grad_entropy))
        _C.logprob_backward(
            *inputs,
            *(0 if t is None else t.data_ptr() for t in (lse, entropy, *grads, grad_hidden, grad_weight)),
        )
        del scratch
        return grad_hidden, grad_weight, None, None
