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
def fingerprints(arrays: int, count: int, results: int) -> None: ...
def decoder_layers_scratch(hidden: int, feed_forward: int, query_width: int, kv_width: int) -> int: ...
def decoder_layers(
    layers: int,
    count: int,
    tensors: tuple[int, int, int, int, int, int, int, int, int],
    sizes: tuple[int, int, int, int],
    tables: tuple[int, int, int, int, int, int],
    rows: tuple[int, int, int, int],
    pictures: tuple[tuple[int, int], tuple[int, int, int, int, int, int], tuple[int, int, int, int]] | None,
    heads: tuple[int, int, int],
    eps: float,
    scale: float,
    dtype: int,
) -> None: ...
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
def group_advantage(
    rewards: int, groups: int, order: int, out: int, count: int, tie: float, kind: int
) -> None: ...
def gae(
    rewards: int,
    values: int,
    offsets: int,
    bootstrap: int,
    out: int,
    count: int,
    episodes: int,
    gamma: float,
    lam: float,
) -> None: ...
def rms_norm_backward_scratch(rows: int, width: int) -> int: ...
def rms_norm_backward(tensors: tuple[int, ...], rows: int, width: int, eps: float, dtype: int) -> None: ...
def packed_attention_backward_scratch(sizes: tuple[int, ...], dtype: int) -> int: ...
def packed_attention_backward(
    addresses: tuple[int, ...], sizes: tuple[int, ...], scale: float, dtype: int
) -> None: ...
def swiglu(gate_up: int, out: int, rows: int, width: int, dtype: int) -> None: ...
def swiglu_backward(
    gate_up: int, grad: int, grad_gate_up: int, out: int, rows: int, width: int, dtype: int
) -> None: ...
def image_tiles(
    tensors: tuple[int, int, int, int],
    weights: tuple[int, int, int, int],
    sizes: tuple[int, int, int, int, int, int, int],
    tiles: tuple[int, int, int],
    dtype: int,
) -> None: ...
def rope_cache(
    q: int,
    k: int,
    v: int,
    out: int,
    cos: int,
    sin: int,
    positions: int,
    slots: int,
    k_cache: int,
    v_cache: int,
    tokens: int,
    q_stride: int,
    k_stride: int,
    v_stride: int,
    heads: int,
    kv_heads: int,
    dim: int,
    page: int,
    dtype: int,
) -> None: ...
def packed_size(n: int, k: int, dtype: int) -> int: ...
def pack_linear(weight: int, packed: int, n: int, k: int, dtype: int) -> None: ...
def linear(
    x: int,
    packed: int,
    bias: int,
    out: int,
    rows: int,
    n: int,
    k: int,
    dtype: int,
    out_dtype: int,
) -> None: ...
def logprob_scratch(
    rows: int,
    width: int,
    vocab: int,
    slots: int,
    dtype: int,
    grad_hidden: bool,
    grad_weight: bool,
) -> int: ...
def logprob_forward(
    hidden: int,
    weight: int,
    targets: int,
    scratch: int,
    rows: int,
    width: int,
    vocab: int,
    scale: float,
    slots: int,
    dtype: int,
    logp: int,
    entropy: int,
    lse: int,
) -> None: ...
def logprob_backward(
    hidden: int,
    weight: int,
    targets: int,
    scratch: int,
    rows: int,
    width: int,
    vocab: int,
    scale: float,
    slots: int,
    dtype: int,
    lse: int,
    entropy: int,
    grad_logp: int,
    grad_entropy: int,
    grad_hidden: int,
    grad_weight: int,
) -> None: ...
def cached_attention(
    tensors: tuple[int, int, int, int, int],
    tables: tuple[int, int, int, int, int, int],
    sizes: tuple[int, int, int, int],
    heads: tuple[int, int, int],
    scale: float,
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
