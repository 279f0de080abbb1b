"""Token log-probabilities from hidden states: scoring alone, and forward with backward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth, matrix_rate

from harness import MEBIBYTE, Bench, machine_device
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.logprob import logprob

SHAPES = ((2048, 576, 49152), (2048, 1024, 128256))
QUICK = ((256, 576, 4096),)
"""T, D, V."""

Side = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What a user writes: the whole table of logits."""
    logp = F.log_softmax(F.linear(hidden, weight).float(), dim=1)
    return logp.gather(1, targets.unsqueeze(1)).squeeze(1)


def implementations(device: torch.device) -> dict[str, Side]:
    """The naive sequence, then each implementation of the op that this machine runs on ``device``."""
    probe = torch.zeros(1, 1, device=device)
    names = [row.impl for row in availability("logprob", probe) if row.available]
    return {"torch_naive": naive} | {
        name: lambda h, w, t, name=name: logprob(h, w, t, impl=name)[0] for name in names
    }


def peers(bench: Bench, sample: tuple[Tensor, Tensor, Tensor]) -> dict[str, Side]:
    """Published counterparts, tried once on ``sample``: what cannot run here is named as missing."""
    found: dict[str, Side] = {}
    if find_spec("cut_cross_entropy") is None:
        bench.missing("cce", "the package cut-cross-entropy is not installed")
    else:
        from cut_cross_entropy import linear_cross_entropy

        found["cce"] = lambda h, w, t: -linear_cross_entropy(h, w, t, reduction="none", impl="torch_compile")
    if find_spec("liger_kernel") is None:
        bench.missing("liger", "the package liger-kernel is not installed")
    else:
        from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

        found["liger"] = lambda h, w, t: LigerFusedLinearPPOBase.chunk_forward(h[None], w, t[None])[0]
    for name in list(found):
        try:
            found[name](*sample).sum().backward()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, it is reported and left out
            bench.missing(name, f"does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
            del found[name]
    return found


def trainer(side: Side, hidden: Tensor, weight: Tensor, targets: Tensor) -> Callable[[], None]:
    def run() -> None:
        hidden.grad = weight.grad = None
        side(hidden, weight, targets).sum().backward()

    return run


def scorer(side: Side, hidden: Tensor, weight: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: side(hidden, weight, targets))


def extra_memory(bench: Bench, first: int, case: str, metric: str, gradients: int) -> None:
    """For each side measured since row ``first``, what it held at its peak beside the gradients."""
    for row in bench.rows[first:]:
        if row.metric == "peak memory growth" and row.value is not None:
            name = f"{metric.removesuffix('_time')} extra memory"
            bench.value(case, row.impl, name, row.value - gradients / MEBIBYTE, "MiB")


def main() -> None:
    bench = Bench("logprob", "Log-probability of given tokens, straight from hidden states")
    device, quick = machine_device(), bench.args.quick
    bandwidth = copy_bandwidth(device)
    for dtype in (torch.bfloat16, torch.float32):
        rate = matrix_rate(dtype, device)
        for rows, width, vocab in QUICK if quick else SHAPES:
            hidden = torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True)
            weight = torch.randn(vocab, width, device=device).div_(width**0.5).to(dtype).requires_grad_()
            targets = torch.randint(vocab, (rows,), device=device)
            small = [t.detach()[:64].clone() for t in (hidden, weight)]
            sample = (*(t.requires_grad_() for t in small), targets[:64] % 64)
            sides = implementations(device) | peers(bench, sample)
            case = f"T={rows} D={width} V={vocab} {str(dtype).removeprefix('torch.')}"
            repeat = 3 if vocab > 100_000 else 5
            for metric, wrap, products in (("score_time", scorer, 1), ("train_time", trainer, 4)):
                runs = {name: wrap(side, hidden, weight, targets) for name, side in sides.items()}
                first = len(bench.rows)
                bench.compare(case, metric, "ms", runs, ratio_to="torch_naive", repeat=repeat, scale="ms")
                gradients = hidden.nbytes + weight.nbytes if metric == "train_time" else 0
                extra_memory(bench, first, case, metric, gradients)
                # Products with the logits computed twice, over the rate; beside it the weight's bytes, once.
                operations = 2 * products * rows * width * vocab
                floor = max(operations / rate, vocab * width * dtype.itemsize / bandwidth)
                bench.value(case, "floor", metric, floor * 1e3, "ms")
            hidden.grad = weight.grad = None
    bench.finish()


if __name__ == "__main__":
    main()
