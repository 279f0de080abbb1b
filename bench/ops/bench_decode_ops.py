"""What a decode step does between its products, and all of a decoder's layers; beside the bytes that must move.

A step finds the small ops' rows in a cache, where the op before left them, and so do the runs here: only large cases
can be held against the bandwidth of memory. Weights of the layers come from memory each time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth, matrix_rate

from harness import Bench, machine_device
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.load import load
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.rms_norm import rms_norm
from sftrl_fast.ops.rope_cache import rope_cache
from sftrl_fast.ops.swiglu import swiglu

HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, WIDTH = 576, 1536, 9, 3, 64
"""SmolLM2-135M's."""
ROWS, QUICK_ROWS = (1, 64, 8192), (1, 64)
SEQUENCES, QUICK_SEQUENCES = (1, 16, 64), (1,)
PAGE, CONTEXT = 16, 64
"""Tokens of a page, and of each sequence once the step is done."""
EPS = 1e-5

Sides = dict[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes and bfloat16 operations a second, measured in this run."""

    device: torch.device
    bandwidth: float
    rate: float


def sides(op: str, run: Callable[[str], object], probe: Tensor) -> Sides:
    names = [row.impl for row in availability(op, probe) if row.available]
    return {name: (lambda name=name: run(name)) for name in names}


def small_ops(rows: int, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Sides, int]]:
    """Op -> its sides on ``rows`` rows, and the bytes it reads and writes."""
    x, residual = torch.randn(2, rows, HIDDEN, device=device).to(dtype)
    weight = torch.randn(HIDDEN, device=device).to(dtype)
    gate_up = torch.randn(rows, 2 * FEED_FORWARD, device=device).to(dtype)
    qkv = torch.randn(rows, HEADS + 2 * KV_HEADS, WIDTH, device=device).to(dtype)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    cos, sin = torch.randn(2, CONTEXT, WIDTH // 2, device=device).to(dtype)
    positions, slots = torch.arange(rows, device=device) % CONTEXT, torch.randperm(rows, device=device)
    k_cache, v_cache = torch.zeros(2, -(-rows // PAGE), KV_HEADS, PAGE, WIDTH, dtype=dtype, device=device)

    def norm(impl: str) -> object:
        return rms_norm(x, weight, eps=EPS, residual=residual, impl=impl)

    def rope(impl: str) -> object:
        return rope_cache(q, k, v, cos, sin, positions, slots, k_cache, v_cache, impl=impl)

    return {
        "rms_norm": (sides("rms_norm", norm, x), 4 * x.nbytes),
        "rope_cache": (sides("rope_cache", rope, q), 2 * qkv.nbytes),
        "swiglu": (
            sides("swiglu", lambda impl: swiglu(gate_up, impl=impl), gate_up),
            gate_up.nbytes * 3 // 2,
        ),
    }


def decode_step(decoder: Decoder, sequences: int) -> Callable[[], object]:
    """One token of each of ``sequences`` through all layers; nothing is shared."""
    device, pages = decoder.device, CONTEXT // PAGE
    own = torch.arange(sequences * pages, dtype=torch.int32, device=device).view(sequences, pages)
    rows = CacheRows(
        query_offsets=torch.arange(sequences + 1, dtype=torch.int32, device=device),
        prefix_of=torch.zeros(sequences, dtype=torch.int32, device=device),
        prefix_pages=torch.zeros(1, 1, dtype=torch.int32, device=device),
        prefix_lengths=torch.zeros(1, dtype=torch.int32, device=device),
        own_pages=own,
        own_lengths=torch.full((sequences,), CONTEXT, dtype=torch.int32, device=device),
    )
    rows.check(sequences, own.numel(), PAGE)
    shape = (own.numel(), decoder.kv_heads, PAGE, decoder.head_dim)
    keys, values = (
        [torch.randn(shape, device=device).to(decoder.dtype) for _ in range(decoder.layers)] for _ in range(2)
    )
    tokens, wanted = (torch.arange(sequences, device=device) for _ in range(2))
    positions = torch.full_like(tokens, CONTEXT - 1)
    slots = own[:, -1].long() * PAGE + PAGE - 1
    return lambda: decoder.hidden(tokens, positions, slots, rows, keys, values, wanted)


def decoder_layers(bench: Bench, machine: Machine) -> None:
    """All layers: torch's ops, ours in a call each, and ours in one call."""
    quick = bench.args.quick
    model = load("tiny" if quick else "smollm2-135m", dtype="bfloat16", device=str(machine.device)).model
    with patch.dict(os.environ, SFTRL_IMPL="torch"):
        decoders = {"torch": Decoder(model)}
    if machine.device.type == "cpu":
        decoders |= {"cpp, a call an op": Decoder(model, fused=False), "cpp": Decoder(model)}
    else:
        decoders["triton"] = Decoder(model)
    products = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    for sequences in QUICK_SEQUENCES if quick else SEQUENCES:
        case = f"decoder_layers, {sequences} sequences of {CONTEXT} tokens, bfloat16"
        runs = {name: decode_step(decoder, sequences) for name, decoder in decoders.items()}
        bench.compare(case, "decode_time", "ms", runs, ratio_to="torch", repeat=9, scale="ms")
        floor = max(2 * products / machine.bandwidth, 2 * products * sequences / machine.rate)
        bench.value(case, "floor", "decode_time", floor * 1e3, "ms")


def main() -> None:
    bench = Bench("decode_ops", "The ops of a decode step between its products, and all layers in one call")
    device = machine_device()
    machine = Machine(device, copy_bandwidth(device), matrix_rate(torch.bfloat16, device))
    for dtype in (torch.bfloat16, torch.float32):
        for rows in QUICK_ROWS if bench.args.quick else ROWS:
            for op, (runs, moved) in small_ops(rows, dtype, device).items():
                case = f"{op}, {rows} rows, {str(dtype).removeprefix('torch.')}"
                bench.compare(case, "time", "us", runs, ratio_to="torch", repeat=15, scale="us", memory=False)
                bench.value(case, "floor", "time", moved / machine.bandwidth * 1e6, "us")
    decoder_layers(bench, machine)
    bench.finish()


if __name__ == "__main__":
    main()
