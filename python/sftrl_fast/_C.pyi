"""Compiled parts of sftrl_fast. Memory safe for any input; argument checks with messages are the callers'."""

import numpy as np
from numpy.typing import NDArray

MAX_NUMBERS: int

def verify_points(
    responses: tuple[str | bytes, ...],
    ranks: NDArray[np.int64],
    numbers: NDArray[np.int64],
    targets: NDArray[np.int64],
    reference: bool,
    cards_shown: bool,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]: ...
def explain_points(
    responses: tuple[str | bytes, ...],
    ranks: NDArray[np.int64],
    numbers: NDArray[np.int64],
    targets: NDArray[np.int64],
    reference: bool,
    cards_shown: bool,
) -> list[str]: ...
def solve_points(numbers: list[int], target: int) -> list[str]: ...
def solvable_points(hands: NDArray[np.int64], target: int) -> NDArray[np.bool_]: ...

# Addresses are `tensor.data_ptr()`, 0 for none; a dtype is a value of sftrl_fast.ops.cpp.DTYPE.

def detected_level() -> str: ...
def level() -> str: ...
def set_level(name: str) -> None: ...
def max_threads() -> int: ...
def rms_norm(
    x: int,
    residual: int,
    weight: int,
    out: int,
    sum: int,
    rows: int,
    width: int,
    eps: float,
    dtype: int,
) -> None: ...
def swiglu(gate_up: int, out: int, rows: int, width: int, dtype: int) -> None: ...
def rope_cache(
    q: int,
    k: int,
    v: int,
    q_stride: int,
    k_stride: int,
    v_stride: int,
    cos: int,
    sin: int,
    positions: int,
    slots: int,
    out: int,
    k_cache: int,
    v_cache: int,
    rows: int,
    q_heads: int,
    kv_heads: int,
    width: int,
    page: int,
    dtype: int,
) -> None: ...
def sample(
    logits: int,
    stride: int,
    uniforms: int,
    temperatures: int,
    temperature: float,
    top_ks: int,
    top_k: int,
    top_ps: int,
    top_p: float,
    tokens: int,
    plain: int,
    sampled: int,
    scratch: int,
    slots: int,
    rows: int,
    vocab: int,
    dtype: int,
) -> None: ...
def sample_scratch(vocab: int) -> int: ...
def uniforms(addresses: list[int], numbers: list[int], out: int, count: int) -> int: ...
