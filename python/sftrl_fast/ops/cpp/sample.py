"""``sample`` and its random numbers on the CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sftrl_fast import _C
from sftrl_fast.ops.cpp import DTYPE

Ints = int | npt.NDArray[np.integer]


def sample_cpp(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.sample.sample`.

    One pass over the logits, each row on one thread; filters then work on the few weights that can pass them.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    uniforms = uniforms.contiguous()
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    plain, sampled = torch.empty(rows), torch.empty(rows)
    slots = min(rows, _C.max_threads())
    scratch = torch.empty(slots * _C.sample_scratch(vocab))
    kept = [s.contiguous() if isinstance(s, Tensor) else s for s in (temperature, top_k, top_p)]
    per_row = [s.data_ptr() if isinstance(s, Tensor) else 0 for s in kept]
    for_all = [0 if isinstance(s, Tensor) else s for s in kept]
    _C.sample(
        logits.data_ptr(), logits.stride(0), uniforms.data_ptr(), per_row[0], for_all[0], per_row[1], int(for_all[1]),
        per_row[2], for_all[2], tokens.data_ptr(), plain.data_ptr(), sampled.data_ptr(), scratch.data_ptr(), slots,
        rows, vocab, DTYPE[logits.dtype],
    )  # fmt: skip
    return tokens, plain, sampled


def uniforms_cpp(fields: tuple[Ints, ...]) -> npt.NDArray[np.float32] | None:
    """The numbers of keys whose fields are plain integers or arrays of one shape; None if they are not, or if one is
    outside of its bits."""
    shape: tuple[int, ...] = ()
    addresses, numbers = [0] * len(fields), [0] * len(fields)
    arrays: list[npt.NDArray[np.uint64]] = []  # kept alive during the call
    for i, field in enumerate(fields):
        if isinstance(field, np.ndarray):
            if field.dtype.kind not in "iu" or (arrays and field.shape != shape):
                return None
            shape = field.shape
            # A negative number becomes one beyond its field's bits; only seed has room for all of uint64.
            if i == 0 and field.dtype.kind == "i" and (field < 0).any():
                return None
            arrays.append(np.ascontiguousarray(field, dtype=np.uint64))
            addresses[i] = arrays[-1].ctypes.data
        elif type(field) is int and 0 <= field < 1 << 64:
            numbers[i] = field
        else:
            return None
    out = np.empty(shape, dtype=np.float32)
    bad = _C.uniforms(addresses, numbers, out.ctypes.data, out.size)
    return out if bad < 0 else None
