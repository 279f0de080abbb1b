"""``packed_attention`` by FlashAttention: each segment over itself, and all children of a prompt as one over it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sftrl_fast.ops.flash.calls import Spans, attend, attend_back, check_heads, merge
from sftrl_fast.ops.flash.packages import packed_package


def packed_attention_flash(q: Tensor, k: Tensor, v: Tensor, rows: Any, scale: float) -> Tensor:
    """Arguments as checked by :func:`sftrl_fast.ops.attention.packed_attention`, ``rows`` its ``PackedRows``.

    The tables are read to the host at the first call with ``rows`` and kept: they must not be changed in place.
    Raises :class:`~sftrl_fast.core.UserError` for heads whose width the packages do not take.
    """
    check_heads(q.shape[2])
    result: Tensor = _PackedAttention.apply(q, k, v, _plan(rows), scale)
    return result


@dataclass(frozen=True, slots=True)
class _Plan:
    own: Spans
    """Every segment that has tokens, over itself."""
    shared: Spans | None
    """The children of each parent over it; None if no token sees a parent's."""
    children: Tensor
    """int64: the tokens that do, in the order of ``shared``."""
    parents: Tensor
    """int64: the tokens that they see."""


_plans: WeakKeyDictionary[Any, _Plan] = WeakKeyDictionary()
"""One a batch, not one a layer."""


def _plan(rows: Any) -> _Plan:
    if rows not in _plans:
        offsets, device = rows.offsets.tolist(), rows.offsets.device
        segments = [range(*pair) for pair in pairwise(offsets)]
        own = [segment for segment in segments if segment]
        children: dict[int, list[int]] = {}
        for segment, parent in zip(segments, rows.parent.tolist(), strict=True):
            if parent >= 0 and segment and segments[parent]:
                children.setdefault(parent, []).extend(segment)
        parents = [segments[parent] for parent in children]
        _plans[rows] = _Plan(
            _spans(own, own, True, device),
            _spans(list(children.values()), parents, False, device) if children else None,
            torch.tensor(
                [t for tokens in children.values() for t in tokens], dtype=torch.int64, device=device
            ),
            torch.tensor([t for tokens in parents for t in tokens], dtype=torch.int64, device=device),
        )
    return _plans[rows]


def _spans(queries: Any, keys: Any, causal: bool, device: torch.device) -> Spans:
    asked, seen = ([len(tokens) for tokens in side] for side in (queries, keys))
    starts, key_starts = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (asked, seen)
    )
    return Spans(starts, key_starts, max(asked, default=0), max(seen, default=0), causal)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan, scale: float) -> Tensor:
        if not q.numel():
            out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32).T
        else:
            package, children, parents = packed_package(), plan.children, plan.parents
            out, lse = attend(package, q, k, v, plan.own, scale)
            if plan.shared is not None:
                over = attend(package, q[children], k[parents], v[parents], plan.shared, scale)
                out[children], lse[:, children] = merge(out[children], lse[:, children], *over)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (q, k, v, out, lse), plan = ctx.saved_tensors, ctx.plan
        if not q.numel():
            return torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), None, None
        grad, package, children, parents = grad.contiguous(), packed_package(), plan.children, plan.parents
        dq, dk, dv = attend_back(package, grad, q, k, v, out, lse, plan.own, ctx.scale)
        if plan.shared is not None:
            parts = (q[children], k[parents], v[parents], out[children], lse[:, children].contiguous())
            more = attend_back(package, grad[children], *parts, plan.shared, ctx.scale)
            for whole, part, at in zip((dq, dk, dv), more, (children, parents, parents), strict=True):
                whole[at] += part  # no token stands twice in `at`
        return dq, dk, dv, None, None
