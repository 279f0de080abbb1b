"""Drawing a token a row with both of its log-probabilities, against the torch operations that users write for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth

from harness import Bench, machine_device
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.sample import sample

SHAPES = ((64, 49152), (1, 49152), (64, 128256))
QUICK = ((16, 4096),)
"""Rows, vocabulary."""
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.95},
    "top_k and top_p": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
}


def naive(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """float32, filters by sorting, ``multinomial``, and a ``log_softmax`` for each of the two log-probabilities."""
    logits = logits.float()
    plain = logits.log_softmax(1)
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(1)
        beyond = p.cumsum(1) - p >= top_p
        logits = logits.masked_fill(beyond.scatter(1, index, beyond), float("-inf"))
    tokens = torch.multinomial(logits.softmax(1), 1)
    return tokens[:, 0], plain.gather(1, tokens)[:, 0], logits.log_softmax(1).gather(1, tokens)[:, 0]


def sides(logits: Tensor, uniforms: Tensor, settings: dict[str, Any]) -> dict[str, Callable[[], object]]:
    names = [row.impl for row in availability("sample", logits[:1]) if row.available]
    own = {name: (lambda name=name: sample(logits, uniforms, impl=name, **settings)) for name in names}
    return {"torch_naive": lambda: naive(logits, **settings), **own}


def main() -> None:
    bench = Bench("sample", "Drawing a token a row, with both of its log-probabilities")
    device = machine_device()
    bandwidth = copy_bandwidth(device)
    for rows, vocab in QUICK if bench.args.quick else SHAPES:
        logits = (torch.randn(rows, vocab, device=device) * 3).to(torch.bfloat16)
        uniforms = torch.rand(rows, device=device)
        for name, settings in SETTINGS.items():
            case = f"B={rows} V={vocab} bfloat16 {name}"
            runs = sides(logits, uniforms, settings)
            bench.compare(case, "time", "ms", runs, ratio_to="torch_naive", repeat=9, scale="ms")
            # Each logit is read once.
            bench.value(case, "floor", "time", logits.nbytes / bandwidth * 1e3, "ms")
    bench.finish()


if __name__ == "__main__":
    main()
