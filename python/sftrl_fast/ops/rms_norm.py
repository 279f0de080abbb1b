"""Root-mean-square normalisation, with the residual addition that precedes it in a decoder layer."""

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
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0:
        raise UserError(f"x is {x.dtype} {list(x.shape)}; needed: floating [T, D] with D > 0")
    for name, tensor, shape in (("weight", weight, x.shape[1:]), ("residual", residual, x.shape)):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device
        ):
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise UserError(f"{name} is {came}; needed: {x.dtype} {list(shape)} on {x.device}")
    if not 0 < eps < float("inf"):
        raise UserError(f"eps is {eps}; needed: a positive finite number")
    return resolve("rms_norm", impl, x)(x, weight, eps, residual)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`rms_norm`."""
    h = x if residual is None else x + residual
    wide = h if h.dtype == torch.float64 else h.float()
    scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), h
