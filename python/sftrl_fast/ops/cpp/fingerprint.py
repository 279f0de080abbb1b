"""``fingerprint`` on the CPU: one pass at the speed of memory."""

from __future__ import annotations

from torch import Tensor

from sftrl_fast import _C


def fingerprint_cpp(x: Tensor) -> int:
    """Arguments as checked by :func:`sftrl_fast.ops.fingerprint.fingerprint`."""
    return _C.fingerprint(x.data_ptr(), x.numel(), x.element_size())
