"""What a kernel file says of its kernels, so that they can be compiled and judged without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's names of the element types that kernels take."""

FUSION = {"enable_fp_fusion": True}
"""Option of every launch: a multiplication and an addition may be one instruction. Triton's default changes."""


@dataclass(frozen=True, slots=True)
class CompileCase:
    """One configuration of one kernel, as it is launched."""

    name: str
    """``op.kernel``, with what else tells it from its like; unique together with ``dtype``."""
    dtype: str
    """Element type of the data, one of the values of :data:`TYPE_NAMES`."""
    kernel: Any
    """The ``@triton.jit`` function."""
    signature: Mapping[str, str]
    """Type of each argument that is no constexpr, in Triton's spelling: ``*bf16``, ``i32``, ``fp32``. Pointers are
    taken as aligned to 16 bytes, as torch's are; ``i32:16`` says the same of a number (the launch finds out)."""
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    registers: int
    """Most registers a thread may take: the file's ``REGISTER_BUDGET``. Spilling is never allowed."""


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes and operations of one launch (or one op) for one shape: the least possible, and those of the kernel."""

    name: str
    shape: str
    bytes_needed: float
    """Each input read once, each output written once."""
    bytes_moved: float
    """What the program instances load and store between them, cache hits included."""
    operations_needed: float
    operations_done: float
    """Multiplications and additions in tiles that are padded to the block sizes, recomputation included."""


def padded(size: int, block: int) -> int:
    """``size`` rounded up to whole blocks."""
    return -(-size // block) * block
