"""``linear`` on the CPU: the weight in panels of 48 columns, read once and in order by each product."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE, pages
from sftrl_fast.ops.linear import PackedLinear


class CppLinear(PackedLinear):
    """Holds a copy of the weight in panels; any level of instructions reads it."""

    impl = "cpp"

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        n, k = self.shape
        if not hasattr(self, "panels"):
            self.panels = pages.empty(_C.packed_size(n, k, DTYPE[self.dtype]), self.dtype)
            self.bias = None if bias is None else torch.empty(n, dtype=self.dtype)
        weight = weight.contiguous()
        _C.pack_linear(weight.data_ptr(), self.panels.data_ptr(), n, k, DTYPE[self.dtype])
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        rows, (n, k) = x.shape[0], self.shape
        out = torch.empty(rows, n, dtype=out_dtype)
        bias = 0 if self.bias is None else self.bias.data_ptr()
        _C.linear(
            x.data_ptr(), self.panels.data_ptr(), bias, out.data_ptr(), rows, n, k, DTYPE[x.dtype], DTYPE[out_dtype]
        )  # fmt: skip
        return out
