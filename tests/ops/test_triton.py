"""Triton kernels against float64 on the same cases twice: interpreted in float32, and on CUDA in every type.

A row of :data:`CASES` makes an op's tensors on the CPU, calls one implementation and returns its float outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sftrl_fast.ops.advantage import KINDS, TIE, gae, group_advantage
from sftrl_fast.ops.dispatch import interpreting
from sftrl_fast.ops.logprob import logprob
from sftrl_fast.ops.rms_norm import rms_norm
from sftrl_fast.ops.rope_cache import rope_cache
from sftrl_fast.ops.sample import sample
from sftrl_fast.ops.swiglu import swiglu

pytest.importorskip("triton", reason="the package triton is not installed")

MARGIN = 2.0
"""Error against float64 allowed over that of plain torch in the same type: sums run in another order."""
ADVANTAGE_MARGIN = 8.0
"""In units in the last place: the reference computes advantages in float64, the kernels in float32."""

Make = Callable[[torch.Generator, int], Sequence[Tensor]]
Call = Callable[[str, Sequence[Tensor]], Sequence[Tensor]]


def randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def make_logprob(g: torch.Generator, size: int) -> Sequence[Tensor]:
    rows, width, vocab = size, 3 * size // 2 + 1, 2 * size + 3
    targets = torch.randint(vocab, (rows,), generator=g)
    return randn(g, rows, width), randn(g, vocab, width) / width**0.5, targets


def call_logprob(impl: str, tensors: Sequence[Tensor], temperature: float = 0.8) -> Sequence[Tensor]:
    hidden, weight = (tensor.clone().requires_grad_() for tensor in tensors[:2])
    logp, entropy = logprob(hidden, weight, tensors[2], temperature=temperature, impl=impl)
    mix = torch.linspace(-1, 1, len(logp), dtype=logp.dtype, device=logp.device)
    ((logp * mix).sum() + (entropy * mix.flip(0)).sum()).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logp.detach(), entropy.detach(), hidden.grad, weight.grad


def make_rms_norm(g: torch.Generator, size: int) -> Sequence[Tensor]:
    return randn(g, size, 9 * size), randn(g, 9 * size), randn(g, size, 9 * size)


def call_rms_norm(impl: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    x, weight, residual = tensors
    plain, _ = rms_norm(x, weight, eps=1e-5, impl=impl)
    return plain, *rms_norm(x, weight, eps=1e-5, residual=residual, impl=impl)


def make_groups(g: torch.Generator, size: int) -> Sequence[Tensor]:
    groups = torch.randint(-size // 3, size // 3 + 1, (5 * size,), generator=g)
    rewards = torch.randint(-3, 3, (5 * size,), generator=g) / 2
    return torch.where(groups == 0, 1.5, rewards), groups  # one group is tied


def call_groups(impl: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return [group_advantage(*tensors, kind=kind, impl=impl) for kind in KINDS]


def make_gae(g: torch.Generator, size: int) -> Sequence[Tensor]:
    lengths = torch.cat((torch.tensor([0, 1, 5 * size]), torch.randint(0, 5, (size,), generator=g)))
    offsets = torch.cat((torch.tensor([0]), lengths.cumsum(0)))
    steps = int(offsets[-1])
    return randn(g, steps), randn(g, steps), offsets, randn(g, len(lengths))


def call_gae(impl: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    rewards, values, offsets, last = tensors
    cut = gae(rewards, values, offsets, gamma=0.97, lam=0.9, bootstrap=last, impl=impl)
    return cut, gae(rewards, values, offsets, gamma=1.0, lam=0.95, impl=impl)


def make_swiglu(g: torch.Generator, size: int) -> Sequence[Tensor]:
    return (randn(g, size, 6 * size),)


def call_swiglu(impl: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return (swiglu(tensors[0], impl=impl),)


def make_rope_cache(g: torch.Generator, size: int) -> Sequence[Tensor]:
    kv, dim, page = 1 + size % 3, 2 * (size % 29 + 1), 4
    angles = 6 * torch.rand(64, dim // 2, generator=g)
    slots = torch.randperm(size * 2 * page, generator=g)[:size]
    slots[1::3] = -1
    joined = randn(g, size, 5 * kv, dim)
    return joined, angles.cos(), angles.sin(), torch.randint(64, (size,), generator=g), slots


def call_rope_cache(impl: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    joined, cos, sin, positions, slots = tensors
    kv = joined.shape[1] // 5
    q, k, v = joined.split([3 * kv, kv, kv], dim=1)
    k_cache, v_cache = torch.zeros(
        (2, 2 * len(joined), kv, 4, joined.shape[2]), dtype=q.dtype, device=q.device
    )
    return rope_cache(q, k, v, cos, sin, positions, slots, k_cache, v_cache, impl=impl), k_cache, v_cache


CASES: dict[str, tuple[Make, Call, float]] = {
    "logprob": (make_logprob, call_logprob, MARGIN),
    "rms_norm": (make_rms_norm, call_rms_norm, MARGIN),
    "swiglu": (make_swiglu, call_swiglu, MARGIN),
    "rope_cache": (make_rope_cache, call_rope_cache, MARGIN),
    "group_advantage": (make_groups, call_groups, ADVANTAGE_MARGIN),
    "gae": (make_gae, call_gae, ADVANTAGE_MARGIN),
}
"""Op -> tensors for a seed and a size, outputs of one implementation on them, and its margin."""

SIDES = [
    pytest.param("cpu", torch.float32, id="interpreted-fp32"),
    *(
        pytest.param("cuda", dtype, id=f"cuda-{name}", marks=pytest.mark.gpu)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
    ),
]

SMALL = {
    "logprob": {
        "CHUNK": 32, "ROWS": 32, "COLUMNS": 48,
        **{tile: {"BLOCK_T": 16, "BLOCK_V": 16, "BLOCK_D": 16} for tile in ("SINGLE", "ODD")},
        **{tile: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16} for tile in ("SINGLE_PRODUCT", "ODD_PRODUCT")},
    },
    "sample": {"CHUNK": 64},
    "advantage": {"OWN": 16, "OTHERS": 64, "STEPS": 16},
}  # fmt: skip
"""Block sizes that cut even small cases into many: constants of the kernel files."""


def require(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and not interpreting():
        pytest.skip("there is a CUDA device: kernels are compiled, not interpreted")


@pytest.fixture(params=["shipped blocks", "small blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "shipped blocks":
        return
    for name, constants in SMALL.items():
        module = importlib.import_module(f"sftrl_fast.kernels.{name}")
        for key, value in constants.items():
            if isinstance(value, dict):
                for block, size in value.items():
                    monkeypatch.setitem(getattr(module, key), block, size)
            else:
                monkeypatch.setattr(module, key, value)


def cast(tensors: Sequence[Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in tensors]


def check(op: str, device: str, dtype: torch.dtype, size: int) -> None:
    make, call, margin = CASES[op]
    inputs = cast(make(torch.Generator().manual_seed(size), size), device, dtype)
    truth = call("torch", [t.double() if t.is_floating_point() else t for t in inputs])
    usual = call("torch", inputs)
    ours = call("triton", inputs)
    for index, (true, reference, got) in enumerate(zip(truth, usual, ours, strict=True)):
        assert got.dtype == reference.dtype
        assert not got.isnan().any()
        if not got.numel():
            continue
        allowed = (reference.double() - true).abs().max()
        floor = torch.finfo(got.dtype).eps * true.double().abs().max()
        assert (got.double() - true).abs().max() <= margin * max(allowed, floor), index


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("device", "dtype"), SIDES)
@pytest.mark.parametrize("size", [1, 17, 40])
@pytest.mark.parametrize("op", list(CASES))
def test_error_against_float64_is_the_references(
    op: str, size: int, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(device)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    check(op, device, dtype, size)


def poisoned(buffer: Tensor) -> Tensor:
    """What a kernel does not write must show."""
    return buffer.fill_(float("nan") if buffer.is_floating_point() else -1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", list(CASES))
def test_large_shapes_on_cuda(op: str, dtype: torch.dtype) -> None:
    require("cuda")
    check(op, "cuda", dtype, 700)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("device", "dtype"), SIDES)
@pytest.mark.parametrize("vocab", [1, 7, 150])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.3, 0, 1.0), (0.6, 5, 0.8), (0.0, 0, 1.0)])
def test_a_drawn_token_covers_its_uniform_number_in_float64(
    vocab: int, temperature: float, top_k: int, top_p: float, device: str, dtype: torch.dtype
) -> None:
    require(device)
    small = vocab > importlib.import_module("sftrl_fast.kernels.sample").CHUNK
    count = 6 if small and device == "cpu" else 70  # the interpreter takes a second a row
    g = torch.Generator().manual_seed(vocab)
    # Quarters, so that many logits tie.
    logits = (randn(g, count, vocab) * 8).round().div(4).to(device, dtype)
    u = torch.rand(count, generator=g).to(device)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokens, plain, sampled = sample(logits, u, **settings, impl="triton")  # type: ignore[arg-type]
    z, rows = logits.double(), torch.arange(count, device=device)
    assert (plain.double() - z.log_softmax(1)[rows, tokens]).abs().max() < 2e-6
    if temperature == 0:
        assert torch.equal(tokens, logits.argmax(1))
        assert not sampled.any()
        return
    p = (z / temperature).softmax(1)
    if 0 < top_k < vocab:
        p = torch.where(z >= z.topk(top_k).values[:, -1:], p, 0)
        p /= p.sum(1, keepdim=True)
    ahead = torch.where(p[:, None, :] > p[:, :, None], p[:, None, :], 0).sum(2)
    p = torch.where(ahead < top_p, p, 0)
    p /= p.sum(1, keepdim=True)
    assert (sampled.double() - p[rows, tokens].log()).abs().max() < 2e-6
    upper = p.cumsum(1)[rows, tokens]
    # The sums of float32 weights may round: a token beside the right one is right if it ends there.
    assert ((upper - p[rows, tokens] - 1e-6 <= u) & (u <= upper + 1e-6)).all()


@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_each_row_may_have_its_own_settings(device: str, dtype: torch.dtype) -> None:
    require(device)
    kernels = importlib.import_module("sftrl_fast.kernels.sample")
    g = torch.Generator().manual_seed(5)
    logits, u = randn(g, 6, 90).mul(2).to(device, dtype), torch.rand(6, generator=g).to(device)
    temperature = torch.tensor([0.0, 1.0, 0.7, 2.0, 1.0, 0.3], device=device)
    top_k = torch.tensor([3, 0, 4, 2**40, 1, 9], device=device)
    top_p = torch.tensor([0.5, 1.0, 1.0, 0.9, 0.2, 0.7], device=device)
    whole = kernels.sample_triton(logits, u, temperature, top_k, top_p)
    for row in range(6):
        alone = (temperature[row].item(), int(top_k[row]), top_p[row].item())
        drawn = kernels.sample_triton(logits[row : row + 1], u[row : row + 1], *alone)
        for together, single in zip(whole, drawn, strict=True):
            assert together[row] == single[0]


def test_kernels_call_tied_what_the_op_does() -> None:
    assert importlib.import_module("sftrl_fast.kernels.advantage").TIE.value == TIE


@pytest.mark.parametrize(("device", "dtype"), SIDES)
def test_a_row_of_logprob_does_not_depend_on_its_batch(device: str, dtype: torch.dtype) -> None:
    require(device)
    inputs = cast(make_logprob(torch.Generator().manual_seed(3), 40), device, dtype)
    whole = call_logprob("triton", inputs)
    some = slice(7, 12)
    alone = logprob(inputs[0][some], inputs[1], inputs[2][some], temperature=0.8, impl="triton")
    assert torch.equal(alone[0], whole[0][some])
    assert torch.equal(alone[1], whole[1][some])
