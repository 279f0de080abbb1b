"""Models in float64 to the last digit."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def exact(model: nn.Module) -> nn.Module:
    """``model`` itself, in float64; transformers' own norms go through float32, whose rounding hides differences
    below 1e-6."""
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_norm, module)
    return model
