"""Linear layers that read the same input, as one product where that pays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sftrl_fast.ops.dispatch import choose
from sftrl_fast.ops.linear import PackedLinear, pack_linear


class Projection:
    """The outputs of linear layers side by side, ``[T, N1 + N2 + ...]``.

    Where the implementation copies weights into a form of its own, they become one matrix; where it refers to them,
    they stay what they are, so that nothing is held twice.
    """

    def __init__(self, modules: list[nn.Linear]) -> None:
        weights: list[Tensor] = [module.weight for module in modules]
        biases = [module.bias for module in modules]
        if choose("linear", tensor=weights[0]) == "torch":
            self._parts = [pack_linear(*pair) for pair in zip(weights, biases, strict=True)]
        else:
            self._parts = [_joined(weights, biases)]

    @property
    def packed(self) -> PackedLinear:
        """The one matrix that all became."""
        (part,) = self._parts
        return part

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        outputs = [part.multiply(x, out_dtype or x.dtype) for part in self._parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@torch.no_grad()
def _joined(weights: list[Tensor], biases: Sequence[Tensor | None]) -> PackedLinear:
    bias = None
    if any(part is not None for part in biases):
        parts = zip(weights, biases, strict=True)
        bias = torch.cat([weight.new_zeros(len(weight)) if own is None else own for weight, own in parts])
    return pack_linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)
