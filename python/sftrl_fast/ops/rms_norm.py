"""Root-mean-square normalisation, with the residual addition that precedes it in a decoder layer; and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


@torch.no_grad()
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """``h / sqrt(mean(h^2) + eps) * weight`` for each row of ``h = x + residual``; inference only.

    ``x`` and ``residual`` are ``[T, D]``, ``weight`` ``[D]``, all of one type and device. The mean runs in float32;
    ``h`` and the normalised row are rounded to the type before they are used on, as transformers' Llama does.
    Returns ``(normalised [T, D], h [T, D])``; without a residual ``h`` is ``x`` itself.
    Raises :class:`UserError` for wrong shapes, types or devices and an ``eps`` that is not positive.
    """
    _check(x, weight, eps, residual=residual)
    return resolve("rms_norm", impl, x)(x, weight, eps, residual)


@torch.no_grad()
def rms_norm_backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    eps: float,
    passed: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of what was normalised, ``[T, D]``, and of the weight, ``[D]``.

    ``x`` ``[T, D]`` is what was normalised (:func:`rms_norm`'s ``h``) and ``grad`` ``[T, D]`` the gradient of the
    result. ``passed`` ``[T, D]`` is added to the gradient of ``x``: what a residual stream brings past the layer. All
    are of one type and device; sums run in float32. With n the normalised row before the weight and d = grad weight,
    the gradient of x is (d - n mean(d n)) times the row's scale.
    Raises :class:`UserError` as :func:`rms_norm` does.
    """
    _check(x, weight, eps, grad=grad, passed=passed)
    return resolve("rms_norm_backward", impl, x)(x, weight, grad, eps, passed)


def _check(x: Tensor, weight: Tensor, eps: float, **rows: Tensor | None) -> None:
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0:
        raise UserError(f"x is {x.dtype} {list(x.shape)}; needed: floating [T, D] with D > 0")
    of_rows = ((name, tensor, x.shape) for name, tensor in rows.items())
    for name, tensor, shape in (("weight", weight, x.shape[1:]), *of_rows):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device
        ):
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise UserError(f"{name} is {came}; needed: {x.dtype} {list(shape)} on {x.device}")
    if not 0 < eps < float("inf"):
        raise UserError(f"eps is {eps}; needed: a positive finite number")


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`rms_norm`."""
    h = x if residual is None else x + residual
    wide = h if h.dtype == torch.float64 else h.float()
    scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), h


def rms_norm_backward_torch(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float, passed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`rms_norm_backward`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h, slope = x.to(wide), grad.to(wide)
    scale = torch.rsqrt(h.square().mean(1, keepdim=True) + eps)
    normed, inner = h * scale, slope * weight.to(wide)
    grad_x = scale * (inner - normed * (inner * normed).mean(1, keepdim=True))
    if passed is not None:
        grad_x += passed
    return grad_x.to(x.dtype), (slope * normed.to(x.dtype)).sum(0).to(x.dtype)
