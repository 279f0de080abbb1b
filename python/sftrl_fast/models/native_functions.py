"""The pieces of a decoder layer on the engine's kernels, with gradients: what each keeps is what it cannot make again.

A forward is the engine's, to the bit. Products of a backward are torch's; the rest of it are ops of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sftrl_fast.models.projection import Projection
from sftrl_fast.ops.rms_norm import rms_norm, rms_norm_backward
from sftrl_fast.ops.rope_cache import rope_cache
from sftrl_fast.ops.swiglu import swiglu, swiglu_backward

Gradients = tuple[Tensor | None, ...]


class Norm(Function):
    """``(x, residual or None, weight, eps)`` to the normalised rows of x + residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        normed, total = rms_norm(x, weight, eps=eps, residual=residual)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        total, weight = ctx.saved_tensors
        grad_x, grad_weight = rms_norm_backward(total, weight, grad, eps=ctx.eps)
        return grad_x, grad_x if ctx.needs_input_grad[1] else None, grad_weight, None


class NormedProjection(Function):
    """``(x, residual or None, norm, eps, projection, *weights, *biases)`` to linear layers of the normalised rows of
    x + residual, and to x + residual. The normalised rows are made again for the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, projection: Projection,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        normed, total = rms_norm(x, norm, eps=eps, residual=residual)
        ctx.save_for_backward(total, norm, *parameters)
        ctx.eps = eps
        return projection(normed), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, passed: Tensor) -> Gradients:
        total, norm, *parameters = ctx.saved_tensors
        of_x, of_residual, of_norm, _, _, *needed = ctx.needs_input_grad
        normed, _ = rms_norm(total, norm, eps=ctx.eps)
        grads = _of_parameters(needed, grad, normed, parameters)
        if not (of_x or of_residual or of_norm):
            return None, None, None, None, None, *grads
        slope = grad @ _joined(parameters)
        grad_x, grad_norm = rms_norm_backward(total, norm, slope, eps=ctx.eps, passed=passed)
        return grad_x, grad_x if of_residual else None, grad_norm, None, None, *grads


class Projected(Function):
    """``(x, projection, weight, bias or None)`` to a linear layer of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, *parameters: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        return projection(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, *parameters = ctx.saved_tensors
        of_x, _, *needed = ctx.needs_input_grad
        return grad @ parameters[0] if of_x else None, None, *_of_parameters(needed, grad, x, parameters)


class GatedProjection(Function):
    """``(gate_up, projection, weight, bias or None)`` to a linear layer of ``silu(gate) * up``, which is made again for
    the backward."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, projection: Projection, *parameters: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_up, *parameters)
        return projection(swiglu(gate_up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        gate_up, *parameters = ctx.saved_tensors
        grad_gate_up, active = swiglu_backward(gate_up, grad @ parameters[0])
        return grad_gate_up, None, *_of_parameters(ctx.needs_input_grad[2:], grad, active, parameters)


class Rotated(Function):
    """``(q, k, v, cos, sin, positions)`` to q and k turned by their positions, and v; each of its own memory.

    ``[T, heads, Dh]``; turned keys and values lie as in a cache with a page a token.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.tables = cos, sin, positions
        return _turned(q, k, v, cos, sin, positions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> Gradients:
        cos, sin, positions = ctx.tables
        return *_turned(grad_q, grad_k, grad_v, cos, -sin, positions), None, None, None


def _turned(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads, width = k.shape
    keys, values = (torch.empty(tokens, heads, 1, width, dtype=k.dtype) for _ in range(2))
    places = torch.arange(tokens)
    return rope_cache(q, k, v, cos, sin, positions, places, keys, values), keys.squeeze(2), values.squeeze(2)


def _joined(parameters: Sequence[Tensor | None]) -> Tensor:
    """The weights of layers side by side as one ``[N1 + N2 + ..., K]``."""
    weights = [weight for weight in parameters[: len(parameters) // 2] if weight is not None]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _of_parameters(
    needed: Sequence[bool], grad: Tensor, x: Tensor, parameters: Sequence[Tensor | None]
) -> Gradients:
    """Gradients of the weights, then of the biases, of layers side by side that read ``x``."""
    count = len(parameters) // 2
    widths = [len(weight) for weight in parameters[:count] if weight is not None]
    of_weights: Sequence[Tensor | None] = [None] * count
    of_biases: Sequence[Tensor | None] = [None] * count
    if any(needed[:count]):
        of_weights = (grad.t() @ x).split(widths)
    if any(needed[count:]):
        of_biases = grad.sum(0).split(widths)
    both = zip((*of_weights, *of_biases), needed, strict=True)
    return tuple(found if wanted else None for found, wanted in both)
