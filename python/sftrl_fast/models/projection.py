"""Linear layers that read the same input, as one product where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sftrl_fast.models.adapters import weight
from sftrl_fast.ops.dispatch import choose
from sftrl_fast.ops.linear import PackedLinear, pack_linear


class Projection:
    """The outputs of linear layers, adapted or not, side by side: ``[T, N1 + N2 + ...]``.

    Where the implementation copies weights into a form of its own, they become one matrix; where it refers to them,
    they stay what they are, so that nothing is held twice.
    """

    def __init__(self, modules: list[Any]) -> None:
        self._joins = choose("linear", tensor=modules[0].weight) != "torch"
        self._parts = [pack_linear(*part) for part in self._read(modules)]

    def update(self, modules: list[Any]) -> None:
        """Take the values of the same layers as they are now, into the memory that is there."""
        for part, pair in zip(self._parts, self._read(modules), strict=True):
            part.update(*pair)

    def _read(self, modules: list[Any]) -> list[tuple[Tensor, Tensor | None]]:
        with torch.no_grad():
            pairs: list[tuple[Tensor, Tensor | None]] = [(weight(module), module.bias) for module in modules]
        return [_joined(*zip(*pairs, strict=True))] if self._joins else pairs

    @property
    def packed(self) -> PackedLinear:
        """The one matrix that all became."""
        (part,) = self._parts
        return part

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        outputs = [part.multiply(x, out_dtype or x.dtype) for part in self._parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@torch.no_grad()
def _joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    bias = None
    if any(part is not None for part in biases):
        parts = zip(weights, biases, strict=True)
        bias = torch.cat([weight.new_zeros(len(weight)) if own is None else own for weight, own in parts])
    return weights[0] if len(weights) == 1 else torch.cat(list(weights)), bias
