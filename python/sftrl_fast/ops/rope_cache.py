"""Rotary position embedding, with the rotated keys and the values written into a paged cache."""

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
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    impl: str | None = None,
) -> Tensor:
    """Rotate queries and keys by their positions and put keys and values into the cache; rotated q ``[T, Hq, Dh]``.

    ``q`` is ``[T, Hq, Dh]``, ``k`` and ``v`` are ``[T, Hkv, Dh]``; they may be views into one row a token, as long as
    each token's part is contiguous. ``cos`` and ``sin`` are ``[P, Dh / 2]``, the caches ``[pages, Hkv, page, Dh]``, all
    of q's type. ``positions`` is int64 ``[T]`` in ``[0, P)``; ``slots`` int64 ``[T]``, page times page size plus
    offset, or negative for a token that is not kept. With (x1, x2) the halves of a head, the result is
    (x1 cos - x2 sin, x2 cos + x1 sin) (arXiv 2104.09864, in the order of halves that Llama's weights have), each
    product rounded to the type as transformers does.
    Raises :class:`UserError` for wrong shapes, types or devices and for positions or slots out of range.
    """
    _check(q, k, v, cos, sin, positions, slots, k_cache, v_cache)
    result: Tensor = resolve("rope_cache", impl, q)(q, k, v, cos, sin, positions, slots, k_cache, v_cache)
    return result


def rope_cache_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """The plain torch implementation; arguments as checked by :func:`rope_cache`."""
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    kept = slots >= 0
    page = torch.div(slots[kept], k_cache.shape[2], rounding_mode="floor")
    offset = slots[kept] % k_cache.shape[2]
    k_cache[page, :, offset] = _rotate(k, c, s)[kept]
    v_cache[page, :, offset] = v[kept]
    return _rotate(q, c, s)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=2)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> None:
    if q.dim() != 3 or not q.is_floating_point() or q.shape[2] < 2 or q.shape[2] % 2 or k_cache.dim() != 4:
        came = f"{q.dtype} {list(q.shape)}, {list(k_cache.shape)}"
        raise UserError(
            f"q, k_cache: {came}; needed: floating [T, Hq, Dh], [pages, Hkv, page, Dh] with an even Dh"
        )
    tokens, _, dim = q.shape
    kv = (tokens, k_cache.shape[1], dim)
    table = (cos.shape[0], dim // 2)
    cache = (*k_cache.shape[:3], dim)
    needed = {"k": (k, kv), "v": (v, kv), "cos": (cos, table), "sin": (sin, table)}
    needed |= {"k_cache": (k_cache, cache), "v_cache": (v_cache, cache)}
    for name, (tensor, shape) in needed.items():
        if tensor.shape != shape or tensor.dtype != q.dtype or tensor.device != q.device:
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise UserError(f"{name} is {came}; needed: {q.dtype} {list(shape)} on {q.device}")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise UserError("k_cache, v_cache: needed: contiguous")
    for name, index, low, high in (
        ("positions", positions, 0, cos.shape[0]),
        ("slots", slots, -(2**63), k_cache.shape[0] * k_cache.shape[2]),
    ):
        if index.shape != (tokens,) or index.dtype != torch.int64 or index.device != q.device:
            came = f"{index.dtype} {list(index.shape)} on {index.device}"
            raise UserError(f"{name} is {came}; needed: torch.int64 [{tokens}] on {q.device}")
        if tokens:
            least, most = (int(bound) for bound in index.aminmax())
            if least < low or most >= high:
                raise UserError(
                    f"{name} hold {least if least < low else most}; needed: below {high}, not negative"
                )
