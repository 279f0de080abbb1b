"""Every call that is made of a FlashAttention package, by keyword: the packages order their arguments differently.

Queries are ``[T, Hq, Dh]``; a row of the softmax has its logarithm of the sum of weights in ``lse [Hq, T]``, float32.
A causal mask is aligned to the last query and the last key. The packages are imported when called.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sftrl_fast.core import UserError

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Spans:
    """Sequences of queries and their keys, both packed: int32 offsets, the longest of each, and the mask."""

    queries: Tensor
    """``[n + 1]``."""
    keys: Tensor
    """``[n + 1]``."""
    most_queries: int
    most_keys: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Pages:
    """Sequences of queries, packed, and where their keys stand in a paged cache; int32 tensors."""

    queries: Tensor
    """``[n + 1]``."""
    table: Tensor
    """``[n, pages]``; every entry is a page of the cache."""
    lengths: Tensor
    """``[n]``, tokens."""
    most_queries: int
    causal: bool


def check_heads(dim: int) -> None:
    """Raise :class:`UserError` for a width of heads that the packages do not take."""
    if dim % 8 or dim > 256:
        raise UserError(f"q has Dh {dim}; needed: a multiple of 8 up to 256 for impl 'flash'")


def attend(
    package: str, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
) -> tuple[Tensor, Tensor]:
    """Output ``[T, Hq, Dh]`` and ``lse`` of ``package``; not differentiable."""
    named = {"q": q, "k": k, "v": v, "softmax_scale": scale, "causal": spans.causal} | _lengths(spans)
    if package == "flash-attn-4":
        from flash_attn.cute import flash_attn_varlen_func as by_cute

        return by_cute(**named, return_lse=True)
    from flash_attn.flash_attn_interface import flash_attn_varlen_func

    out, lse, _ = flash_attn_varlen_func(**named, return_attn_probs=True)
    return out, lse


def attend_back(
    package: str, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans,
    scale: float,
) -> Gradients:  # fmt: skip
    """Gradients of q, k and v by one order of sums.

    The weights are ``exp(scale q k^T - lse)`` and the slope of a score ``weight (grad v - grad out)``. So where ``out``
    and ``lse`` are those of more keys than ``k``, these are the parts of ``k`` in the gradients.
    """
    named = {"q": q, "k": k, "v": v, "out": out, "dout": grad, "softmax_scale": scale} | _lengths(spans)
    named |= {"causal": spans.causal, "deterministic": True}
    if package == "flash-attn-4":
        from flash_attn.cute.interface import _flash_attn_bwd

        return _flash_attn_bwd(**named, lse=lse)
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    gradients = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _flash_attn_varlen_backward(
        **named, softmax_lse=lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True)), dropout_p=0.0,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
    )  # fmt: skip
    return gradients  # type: ignore[return-value]


def attend_pages(
    package: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, pages: Pages, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and ``lse`` over caches ``[pages, page, Hkv, Dh]``. Keys are not split: no sum depends on the batch."""
    named = {
        "q": q,
        "softmax_scale": scale,
        "causal": pages.causal,
        "page_table": pages.table,
        "num_splits": 1,
    }
    named |= {"cu_seqlens_q": pages.queries, "max_seqlen_q": pages.most_queries}
    if package == "flash-attn-4":
        from flash_attn.cute import flash_attn_varlen_func

        out, lse = flash_attn_varlen_func(
            **named, k=k_cache, v=v_cache, seqused_k=pages.lengths, return_lse=True
        )
    else:
        from flash_attn_interface import flash_attn_with_kvcache

        out, lse, *_ = flash_attn_with_kvcache(
            **named, k_cache=k_cache, v_cache=v_cache, cache_seqlens=pages.lengths, return_softmax_lse=True
        )
    return out, lse


def merge(out: Tensor, lse: Tensor, more: Tensor, its_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each: output in its type, and ``lse``."""
    # By the difference: beside a large number the sum of two weights would be lost.
    weight = (its_lse - lse).sigmoid().T.unsqueeze(2)
    merged = torch.lerp(out.float(), more.float(), weight)
    return merged.to(out.dtype), torch.logaddexp(lse, its_lse)


def _lengths(spans: Spans) -> dict[str, Tensor | int]:
    return {
        "cu_seqlens_q": spans.queries,
        "cu_seqlens_k": spans.keys,
        "max_seqlen_q": spans.most_queries,
        "max_seqlen_k": spans.most_keys,
    }
