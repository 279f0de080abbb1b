"""A training step: seconds and peak memory of ours and of TRL's, same weights, same prompts and answers.

``update_time`` is a GRPO update on given answers, ``step_time`` one that draws its answers first, ``sft_time`` a
supervised step on as many rows. Every side runs in a process of its own, one at a time, in turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "ops"))

from rates import matrix_rate

from harness import MEBIBYTE, ROOT, Bench, machine_device
from peers.process import Peer, PeerError, worker_env
from peers.weights import folder
from sftrl_fast.models.load import LanguageModel, load

PEERS = Path(__file__).resolve().parent / "peers"
SIDES = ("native", "trl", "trl_checkpointing")
BASE = "trl"
"""The side that ratios are against."""
KINDS = {"grpo": ("update", "step"), "sft": ("sft",)}
METRICS = {"update": "update_time", "step": "step_time", "sft": "sft_time"}
GROUP = 8
THREADS = 2
REPEAT = 3


@dataclass(frozen=True, slots=True)
class Size:
    """So many prompts, of so many tokens, each with ``GROUP`` answers."""

    prompts: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def answers(self) -> int:
        return self.prompts * GROUP

    def __str__(self) -> str:
        return f"{self.answers} answers of {self.answer_tokens} on prompts of {self.prompt_tokens}, groups of {GROUP}"


FULL, QUICK = Size(8, 130, 60), Size(1, 16, 8)


def options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(threads=THREADS)
    parser.add_argument("--model", default="smollm2-135m", metavar="NAME", help="smollm2-135m, or a folder")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="all but the others")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of training")
    parser.add_argument("--repeat", type=int, default=REPEAT, metavar="N", help="timed steps of each side")


def request(work: str, turn: int, vocabulary: int, size: Size) -> dict[str, object]:
    """Random tokens, the same for every side, others at each turn. Demonstrations have a prompt each."""
    rng = random.Random(f"{work} {turn}")
    prompts = size.answers if work == "sft" else size.prompts
    return {
        "work": work,
        "prompts": [rng.choices(range(vocabulary), k=size.prompt_tokens) for _ in range(prompts)],
        "answers": [rng.choices(range(vocabulary), k=size.answer_tokens) for _ in range(size.answers)],
    }


def command(side: str, kind: str, model: str, weights: Path, threads: int) -> list[str]:
    if side == "native":
        return [sys.executable, str(PEERS / "own_training.py"), kind, model, str(threads)]
    more = ["checkpointing"] if side == "trl_checkpointing" else []
    return [sys.executable, str(PEERS / "trl_worker.py"), kind, str(weights), str(threads), *more]


def bench_kind(
    bench: Bench, kind: str, works: tuple[str, ...], language: LanguageModel, weights: Path, size: Size
) -> None:
    """Start every side's process for ``kind`` and take its steps in turn."""
    args, vocabulary = bench.args, language.model.get_input_embeddings().weight.shape[0]
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for side in args.sides:
            print(f"starting {side} for {kind}", file=sys.stderr, flush=True)
            log = ROOT / "build" / "bench_train_step" / f"{side}-{kind}.log"
            try:
                start = command(side, kind, args.model, weights, args.threads)
                peer = stack.enter_context(Peer(start, log, worker_env(args.threads)))
                for work in works:  # untimed: optimizer states, caches, first touches of memory
                    peer.ask(request(work, 0, vocabulary, size))
            except PeerError as error:
                bench.missing(side, str(error))
                continue
            peers[side] = peer
        for work in works:
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in peers}
            for turn in range(1, args.repeat + 1):
                for side, peer in peers.items():
                    runs[side].append(peer.ask(request(work, turn, vocabulary, size)))
            report(bench, str(size), METRICS[work], runs)


def report(bench: Bench, case: str, metric: str, runs: Mapping[str, list[dict[str, float]]]) -> None:
    """A row of median time and one of memory for each side."""
    for name, key, scale, unit in (
        (metric, "seconds", 1.0, "s"),
        (f"{metric}: peak memory above the weights", "peak", MEBIBYTE, "MiB"),
    ):
        medians = {side: statistics.median(run[key] for run in of_side) for side, of_side in runs.items()}
        for side, value in medians.items():
            ratio = (BASE, medians[BASE] / value) if BASE in medians and value else (None, None)
            bench.value(case, side, name, value / scale, unit, *ratio)


def floors(bench: Bench, language: LanguageModel, size: Size) -> None:
    """Seconds of the products alone at the measured rate: 6 operations a token and weight it meets, a shared prompt's
    tokens once, the vocabulary's weights for answer tokens only."""
    head = language.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in language.model.get_decoder().layers.parameters())
    rate = matrix_rate(torch.bfloat16, machine_device())
    print(f"bfloat16 products {rate / 1e9:.0f} GFLOP/s")
    answered = size.answers * size.answer_tokens
    for metric, prompts in (("update_time", size.prompts), ("sft_time", size.answers)):
        operations = 6 * (body * (prompts * size.prompt_tokens + answered) + head * answered)
        bench.value(str(size), "floor", metric, operations / rate, "s")


def main() -> None:
    bench = Bench("train_step", __doc__ or "", options=options)
    args = bench.args
    torch.set_num_threads(args.threads)
    language = load(args.model, dtype="bfloat16", device=str(machine_device()))
    weights = folder(language, args.model)
    size = QUICK if args.quick else FULL
    floors(bench, language, size)
    for kind in args.kinds:
        bench_kind(bench, kind, KINDS[kind], language, weights, size)
    bench.finish()


if __name__ == "__main__":
    main()
