"""Linear layers of code that is not ours, such as a vision tower's, on weights packed for our product."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from sftrl_fast.ops.dispatch import choose
from sftrl_fast.ops.linear import PackedLinear, linear, pack_linear


class PackedLinears(TorchFunctionMode):
    """While it is entered, ``F.linear`` by a parameter runs on a packed copy of it; for inference only.

    A parameter is packed at its first use, and once more at its first in each ``version`` of the weights, which its
    owner sets. Where the implementation chosen here packs nothing, nothing changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self._packed: MutableMapping[Tensor, tuple[PackedLinear, int]] = WeakIdKeyDictionary()

    def __len__(self) -> int:
        """Parameters that have a copy."""
        return len(self._packed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return (self._linear if func is F.linear else func)(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not isinstance(weight, nn.Parameter) or choose("linear", tensor=weight) == "torch":
            return F.linear(input, weight, bias)
        packed, version = self._packed.get(weight, (None, 0))
        if packed is None:
            packed = pack_linear(weight, bias)
        elif version != self.version:
            packed.update(weight, bias)
        self._packed[weight] = packed, self.version
        rows = linear(input.reshape(-1, input.shape[-1]), packed)
        return rows.view(*input.shape[:-1], len(weight))
