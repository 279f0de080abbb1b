"""``fingerprints`` on the CPU: one pass over all arrays at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sftrl_fast import _C
from sftrl_fast.ops.fingerprint import Words


def fingerprints_cpp(arrays: Sequence[Words]) -> list[int]:
    """Arguments as checked by :func:`sftrl_fast.ops.fingerprint.fingerprints`."""
    rows = [(x.data_ptr(), x.numel() * x.element_size() // width, width) for x, width in arrays]
    table = np.array(rows, dtype=np.int64)
    results = np.empty(len(rows), dtype=np.uint64)
    _C.fingerprints(table.ctypes.data, len(rows), results.ctypes.data)
    return results.tolist()
