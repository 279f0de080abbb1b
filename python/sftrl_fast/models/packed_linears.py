"""Linear layers of code that is not ours, such as a vision tower's, on weights packed for our product."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from sftrl_fast.ops.dispatch import choose
from sftrl_fast.ops.linear import PackedLinear, linear, pack_linear


@dataclass(slots=True)
class _Packed:
    linear: PackedLinear
    bias: Tensor | None
    version: int


class PackedLinears(TorchFunctionMode):
    """While it is entered, ``F.linear`` by parameters runs on a packed copy of them; for inference only.

    A weight and its bias are packed at their first use, and once more at the first in each ``version`` of the weights,
    which its owner sets. All else is computed as it was: what is no matrix of parameters, where the implementation
    chosen here packs nothing, and within functions of torch's that call no function of its interface.
    """

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self._packed: MutableMapping[Tensor, _Packed] = WeakIdKeyDictionary()

    def __len__(self) -> int:
        """Weights that have a copy."""
        return len(self._packed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return (self._linear if func is F.linear else func)(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _covers(weight, bias):
            return F.linear(input, weight, bias)
        known = self._packed.get(weight)
        if known is None or known.bias is not bias:
            known = self._packed[weight] = _Packed(pack_linear(weight, bias), bias, self.version)
        elif known.version != self.version:
            known.linear.update(weight, bias)
            known.version = self.version
        rows = linear(input.reshape(-1, input.shape[-1]), known.linear)
        return rows.view(*input.shape[:-1], len(weight))


def _covers(weight: Tensor, bias: Tensor | None) -> bool:
    of_parameters = isinstance(weight, nn.Parameter) and (bias is None or isinstance(bias, nn.Parameter))
    matrix = weight.dim() == 2 and weight.numel() > 0
    return of_parameters and matrix and choose("linear", tensor=weight) != "torch"
