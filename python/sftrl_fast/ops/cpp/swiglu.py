"""``swiglu`` on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE


def swiglu_cpp(gate_up: Tensor) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.swiglu.swiglu`."""
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype)
    _C.swiglu(gate_up.data_ptr(), out.data_ptr(), rows, width, DTYPE[gate_up.dtype])
    return out
