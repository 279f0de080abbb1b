"""Every implementation against float64 and against transformers' own rotation, at every instruction-set level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.rope_cache import rope_cache, rope_cache_torch

IMPLS = [row.impl for row in availability("rope_cache", torch.empty(0)) if row.available]
MARGIN = 2.0
"""An implementation's error against float64 may be this many times the torch reference's of the same type."""


def inputs(
    tokens: int, heads: int, kv: int, dim: int, page: int, dtype: torch.dtype, seed: int
) -> dict[str, Tensor]:
    """q, k and v are views into one row a token; every third token is not kept; the caches hold NaN."""
    g = torch.Generator().manual_seed(seed)
    joined = torch.randn(tokens, heads + 2 * kv, dim, generator=g).to(dtype)
    q, k, v = joined.split([heads, kv, kv], dim=1)
    angles = torch.rand(50, dim // 2, generator=g) * 6.3
    pages = tokens // page + 2
    slots = torch.randperm(pages * page, generator=g)[:tokens]
    slots[::3] = -1
    caches = {
        name: torch.full((pages, kv, page, dim), float("nan"), dtype=dtype) for name in ("k_cache", "v_cache")
    }
    return {
        "q": q, "k": k, "v": v, "cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype),
        "positions": torch.randint(0, 50, (tokens,), generator=g), "slots": slots, **caches,
    }  # fmt: skip


def run(function: Any, arguments: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = {name: t.clone() if "cache" in name else t for name, t in arguments.items()}
    return function(**given, **options), given["k_cache"], given["v_cache"]


def check(impl: str, arguments: dict[str, Tensor]) -> None:
    wide = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
    exact, usual = run(rope_cache_torch, wide), run(rope_cache_torch, arguments)
    got = run(rope_cache, arguments, impl=impl)
    assert torch.equal(got[2].nan_to_num(7), usual[2].nan_to_num(7))
    for mine, theirs, truth in zip(got[:2], usual[:2], exact[:2], strict=True):
        # What was not written still holds NaN, and nothing else does.
        assert torch.equal(mine.isnan(), truth.isnan())
        mine, theirs, truth = (t.double().nan_to_num(0) for t in (mine, theirs, truth))
        floor = torch.finfo(arguments["q"].dtype).eps * 4
        bound = max(float((theirs - truth).abs().max()), floor) if truth.numel() else 0
        assert not mine.numel() or float((mine - truth).abs().max()) <= MARGIN * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
@given(
    tokens=st.integers(0, 60), kv=st.integers(1, 3), repeat=st.integers(1, 3), half=st.integers(1, 40),
    page=st.sampled_from([1, 4, 16]), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_error_against_float64_is_the_references(
    impl: str, dtype: torch.dtype, tokens: int, kv: int, repeat: int, half: int, page: int, seed: int
) -> None:
    check(impl, inputs(tokens, kv * repeat, kv, 2 * half, page, dtype, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("level")
def test_every_level_is_right(dtype: torch.dtype) -> None:
    for dim in (2, 30, 64, 80):
        check("cpp", inputs(37, 6, 2, dim, 8, dtype, dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
def test_rotation_is_transformers_own(impl: str, dtype: torch.dtype) -> None:
    arguments = inputs(40, 4, 2, 64, 16, dtype, 1)
    cos, sin = (torch.cat([arguments[name]] * 2, dim=1)[arguments["positions"]] for name in ("cos", "sin"))
    q, _ = apply_rotary_pos_emb(arguments["q"], arguments["k"], cos, sin, unsqueeze_dim=1)
    # Where nothing is fused the bits are the same; a fused multiplication spares float32 one rounding.
    torch.testing.assert_close(
        rope_cache(**arguments, impl=impl), q, rtol=0, atol=1e-6 if dtype == torch.float32 else 0
    )


def test_bad_input_names_the_argument() -> None:
    good = inputs(6, 4, 2, 8, 4, torch.float32, 0)
    faults = {
        "q": good["q"][0], "k": good["k"][:5], "v": good["v"].bfloat16(), "cos": good["cos"][:, :3],
        "sin": good["sin"][:9], "positions": good["positions"].int(), "slots": good["slots"][:2],
        "k_cache": good["k_cache"].bfloat16(), "v_cache": good["v_cache"][:1],
    }  # fmt: skip
    for name, bad in faults.items():
        with pytest.raises(UserError, match=name):
            rope_cache(**{**good, name: bad})
    with pytest.raises(UserError, match="positions hold 50"):
        rope_cache(**{**good, "positions": torch.full((6,), 50)})
    with pytest.raises(UserError, match="positions hold -1"):
        rope_cache(**{**good, "positions": torch.full((6,), -1)})
    slots = good["k_cache"].shape[0] * 4
    with pytest.raises(UserError, match=f"slots hold {slots}"):
        rope_cache(**{**good, "slots": torch.full((6,), slots)})
