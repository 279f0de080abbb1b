"""Rotary position embedding of queries and keys, with the write of keys and values into a paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


@torch.no_grad()
def rope_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    check_indices: bool = True,
    impl: str | None = None,
) -> Tensor:
    """Rotate ``q`` and ``k``, write rotated ``k`` and ``v`` into the cache, return rotated ``q``; inference only.

    Rotation (arXiv 2104.09864, in the half-split order of transformers' Llama): with position p of row t and
    i < Dh / 2, ``(x_i, x_{i + Dh/2}) -> (x_i c - x_{i + Dh/2} s, x_{i + Dh/2} c + x_i s)``, where c, s are
    ``cos[p, i], sin[p, i]``. Both are cast to the type first, and both products and their sum are rounded to it,
    as transformers does.

    Args:
        q: floating ``[T, Hq, Dh]``; k, v: ``[T, Hkv, Dh]`` of the same type and device. They may be views into one
            ``[T, (Hq + 2 Hkv) Dh]`` matrix.
        cos, sin: float32 ``[P, Dh / 2]``, contiguous.
        positions: int64 ``[T]`` in ``[0, P)``.
        k_cache, v_cache: ``[pages, Hkv, page, Dh]`` of q's type, contiguous; changed in place.
        slots: int64 ``[T]``; row t goes to page ``slots[t] // page``, place ``slots[t] % page``; -1 writes nothing.
            Two rows must not share a slot: which one stays is open.
        check_indices: whether to look at ``positions`` and ``slots``. That costs more than a small call itself;
            pass False only where the same tensors were checked before, as in a decoder's second layer: a wrong index
            then reads or writes outside of the tables.

    Returns:
        Rotated q, ``[T, Hq, Dh]``, contiguous.

    Raises:
        UserError: for wrong shapes, types, devices or layouts, and for indices out of range.
    """
    _check(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
    if check_indices and len(q):
        _check_range("positions", positions, 0, cos.shape[0])
        _check_range("slots", slots, -1, k_cache.shape[0] * k_cache.shape[2])
    out: Tensor = resolve("rope_cache", impl, q)(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
    return out


def rope_cache_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """The plain torch implementation; arguments as checked by :func:`rope_cache`."""
    c, s = (table[positions].to(q.dtype).unsqueeze(1) for table in (cos, sin))
    written = slots >= 0
    page = slots[written].div(k_cache.shape[2], rounding_mode="floor")
    place = slots[written] % k_cache.shape[2]
    k_cache[page, :, place] = _rotate(k, c, s)[written]
    v_cache[page, :, place] = v[written]
    return _rotate(q, c, s)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> None:
    if q.dim() != 3 or not q.is_floating_point() or q.shape[2] % 2 or 0 in q.shape[1:]:
        raise UserError(
            f"q is {q.dtype} {list(q.shape)}; needed: floating [T, Hq, Dh] with Hq > 0, Dh > 0 even"
        )
    rows, _, width = q.shape
    if k.dim() != 3 or k.shape[1] == 0:
        raise UserError(f"k has shape {list(k.shape)}; needed: [T, Hkv, Dh] with Hkv > 0")
    if k_cache.dim() != 4 or k_cache.shape[2] == 0:
        raise UserError(
            f"k_cache has shape {list(k_cache.shape)}; needed: [pages, Hkv, page, Dh] with page > 0"
        )
    if cos.dim() != 2:
        raise UserError(f"cos has shape {list(cos.shape)}; needed: [P, Dh / 2]")
    heads, (pages, _, page, _) = k.shape[1], k_cache.shape
    half = (cos.shape[0], width // 2)
    for name, tensor, shape, dtype in (
        ("k", k, (rows, heads, width), q.dtype),
        ("v", v, (rows, heads, width), q.dtype),
        ("cos", cos, half, torch.float32),
        ("sin", sin, half, torch.float32),
        ("positions", positions, (rows,), torch.int64),
        ("k_cache", k_cache, (pages, heads, page, width), q.dtype),
        ("v_cache", v_cache, (pages, heads, page, width), q.dtype),
        ("slots", slots, (rows,), torch.int64),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != q.device:
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise UserError(f"{name} is {came}; needed: {dtype} {list(shape)} on {q.device}")
    for name, tensor in (("cos", cos), ("sin", sin), ("k_cache", k_cache), ("v_cache", v_cache)):
        if not tensor.is_contiguous():
            raise UserError(f"{name} has strides {tensor.stride()}; needed: contiguous")


def _check_range(name: str, indices: Tensor, low: int, end: int) -> None:
    least, most = (int(bound) for bound in indices.aminmax())
    if least < low or most >= end:
        raise UserError(f"{name} hold {least if least < low else most}; needed: numbers in [{low}, {end})")
