"""Counter-based random numbers, and drawing tokens with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve

UInt32Array = npt.NDArray[np.uint32]
Ints = int | npt.NDArray[np.integer]

# Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.2.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

FIELD_BITS = {"seed": 64, "step": 32, "prompt": 32, "sample": 20, "turn": 12, "position": 32}


def philox4x32(counter: tuple[UInt32Array, ...], key: tuple[UInt32Array, ...]) -> tuple[UInt32Array, ...]:
    """Four random words for each counter of four words and key of two; uint32 arrays that broadcast."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = (word.astype(np.uint64) for word in key)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for turn in range(_ROUNDS):
        round0 = (k0 + np.uint64(turn * _WEYL[0])) & low
        round1 = (k1 + np.uint64(turn * _WEYL[1])) & low
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> half) ^ c1 ^ round0,
            product1 & low,
            (product0 >> half) ^ c3 ^ round1,
            product0 & low,
        )
    return tuple(np.asarray(word, dtype=np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))


def uniforms(
    seed: Ints, step: Ints, prompt: Ints, sample: Ints, turn: Ints, position: Ints
) -> npt.NDArray[np.float32]:
    """The uniform number in [0, 1) that belongs to a key; arguments are integers or arrays that broadcast.

    Packing: Philox key = (seed bits 0-31, seed bits 32-63); counter = (position, prompt, step,
    sample << 12 | turn). The number is the upper 24 bits of the first output word times 2^-24, so that it is
    exact in float32 and never 1. Raises :class:`UserError` for a field outside its :data:`FIELD_BITS`.
    The compiled module computes them where it is there, to the same bits: an engine asks for a few each step.
    """
    fields = (seed, step, prompt, sample, turn, position)
    compiled = _compiled_uniforms()
    numbers = None if compiled is None else compiled(fields)
    return uniforms_numpy(*fields) if numbers is None else numbers


@cache
def _compiled_uniforms() -> Callable[[tuple[Ints, ...]], npt.NDArray[np.float32] | None] | None:
    if find_spec("sftrl_fast._C") is None:
        return None
    function: Callable[[tuple[Ints, ...]], npt.NDArray[np.float32] | None]
    function = importlib.import_module("sftrl_fast.ops.cpp.sample").uniforms_cpp
    return function


def uniforms_numpy(
    seed: Ints, step: Ints, prompt: Ints, sample: Ints, turn: Ints, position: Ints
) -> npt.NDArray[np.float32]:
    """The plain implementation of :func:`uniforms`, for fields that broadcast in any way."""
    given = (seed, step, prompt, sample, turn, position)
    field = {name: _field(name, value) for name, value in zip(FIELD_BITS, given, strict=True)}
    low = np.uint64(0xFFFFFFFF)
    key = (field["seed"] & low, field["seed"] >> np.uint64(32))
    member = field["sample"] << np.uint64(FIELD_BITS["turn"]) | field["turn"]
    counter = (field["position"], field["prompt"], field["step"], member)
    words = philox4x32(tuple(c.astype(np.uint32) for c in counter), tuple(k.astype(np.uint32) for k in key))
    return (words[0] >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _field(name: str, value: Ints) -> npt.NDArray[np.uint64]:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iu":
        raise UserError(f"{name} is of type {numbers.dtype}; needed: integers of at most 64 bits")
    if numbers.size:
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= 2 ** FIELD_BITS[name]:
            raise UserError(f"{name} is {low if low < 0 else high}; needed: 0 to 2^{FIELD_BITS[name]} - 1")
    return numbers.astype(np.uint64)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token a row by inverting the distribution function at the row's uniform number.

    ``logits`` is floating ``[B, V]``, ``uniforms`` float32 ``[B]`` in [0, 1). Each setting is one number for all
    rows or a tensor ``[B]`` with one a row (float32, int64, float32); numbers are used in float32. Applied in this
    order: temperature, ``top_k`` (0 = off), ``top_p`` (1 = off) on what top_k left; tokens tied with the last one
    kept are kept. Temperature 0 takes the first largest logit. A row's draw depends on no other row.

    Returns ``(tokens int64, logp_plain float32, logp_sampled float32)``, each ``[B]``: natural-log
    probability of the token under softmax(logits), and under the distribution it was drawn from (0 for
    temperature 0).
    Raises :class:`UserError` for bad shapes, types or settings and for rows with NaN, +inf or only -inf.
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise UserError(f"logits is {logits.dtype} {list(logits.shape)}; needed: floating [B, V] with V > 0")
    settings = (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int64),
        ("top_p", top_p, torch.float32),
    )
    for name, tensor, dtype in (("uniforms", uniforms, torch.float32), *settings):
        if isinstance(tensor, Tensor) and (
            tensor.shape != logits.shape[:1] or tensor.dtype != dtype or tensor.device != logits.device
        ):
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise UserError(f"{name} is {came}; needed: {dtype} [{logits.shape[0]}] on {logits.device}")
    if len(logits):
        low, high = zip(*(_extremes(setting) for _, setting, _ in settings), strict=True)
        check_sampling(*low)
        check_sampling(*high)
    run = resolve("sample", impl, logits)
    tokens, plain, sampled = run(logits, uniforms, temperature, top_k, top_p)
    bad = torch.isnan(plain)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise UserError(f"logits[{row}] holds NaN, +inf or nothing but -inf ({int(bad.sum())} such rows)")
    return tokens, plain, sampled


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raise :class:`UserError` if a setting of :func:`sample` is outside its range."""
    if not 0 <= temperature <= torch.finfo(torch.float32).max:
        raise UserError(f"temperature is {temperature}; needed: a finite number >= 0 (0 is greedy)")
    if not 0 <= top_k < 2**63:
        raise UserError(f"top_k is {top_k}; needed: an integer >= 0 (0 is off)")
    if not 0 < np.float32(top_p) <= 1:
        raise UserError(f"top_p is {top_p}; needed: a number in (0, 1] (1 is off)")


def _extremes(setting: float | Tensor) -> tuple[float, float]:
    if not isinstance(setting, Tensor):
        return setting, setting
    low, high = setting.aminmax()  # a NaN among them makes both NaN
    return low.item(), high.item()


def sample_torch(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain torch implementation; arguments as checked by :func:`sample`."""
    vocab = logits.shape[1]
    heat, k, p = (
        torch.as_tensor(s, dtype=dtype, device=logits.device).expand(len(logits)).unsqueeze(1)
        for s, dtype in ((temperature, torch.float32), (top_k, torch.int64), (top_p, torch.float32))
    )
    greedy = heat == 0
    z = logits.float()
    z = z - z.amax(1, keepdim=True)
    weights = (z if bool((heat == 1).all()) else z / torch.where(greedy, 1, heat)).exp()
    few = (k > 0) & (k < vocab)
    if bool(few.any()):
        k = torch.where(few, k, 1)
        least = weights.topk(int(k.max())).values.gather(1, k - 1)
        weights = torch.where(few & (weights < least), 0, weights)
    if bool((p < 1).any()):
        weights = torch.where((p < 1) & (weights < _nucleus(weights, p)), 0, weights)
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1]
    # u <= 1 - 2^-24 makes u * total round to less than total, so a later, larger sum exists; the first one
    # belongs to a token of weight > 0. A NaN row ends at V: clamped here, reported by the caller.
    tokens = torch.searchsorted(cumulative, (uniforms * total).unsqueeze(1), right=True).clamp_(max=vocab - 1)
    tokens = torch.where(greedy, logits.argmax(1, keepdim=True), tokens).squeeze(1)
    sampled = torch.where(greedy.squeeze(1), 0, _pick(weights, tokens).log() - total.log())
    unchanged = ((heat == 1) & ~few & (p == 1)).squeeze(1)
    if bool(unchanged.all()):
        return tokens, sampled, sampled
    plain = _pick(z, tokens) - z.exp().sum(1).log()
    return tokens, torch.where(unchanged, sampled, plain), sampled


def _pick(rows: Tensor, tokens: Tensor) -> Tensor:
    return rows.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Smallest weight in the shortest head of the sorted row that holds ``top_p`` of its sum; both ``[B, 1]``."""
    ordered = weights.sort(1, descending=True).values
    ahead = ordered.cumsum(1) - ordered
    inside = ahead < top_p * ordered.sum(1, keepdim=True)
    return torch.where(inside, ordered, float("inf")).amin(1, keepdim=True)
