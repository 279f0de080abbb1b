"""Rollouts: tokens a second of our engine and its peers, same weights, same prompts, sampling at temperature 1.

Every side runs in a process of its own, one at a time, in turn; see ``README.md`` on the peers' environments.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "ops"))

from rates import copy_bandwidth, matrix_rate

from bench_pictures import MODELS, bench_model
from harness import ROOT, Bench, machine_device
from peers import own
from peers.process import Peer, PeerError, worker_env
from peers.weights import folder, gguf_file
from sftrl_fast.models.load import load

SEQUENCES = (1, 16, 64, 128)
GROUP = 8
PROMPT_TOKENS = 130
NEW_TOKENS = 64
QUICK_SEQUENCES = (1, 16)
QUICK_NEW_TOKENS = 8
THREADS = 2
REPEAT = 3
BASE = "native"
"""The side that ratios are against."""
PEERS = Path(__file__).resolve().parent / "peers"
INSTALLED = {"vllm": "SFTRL_VLLM_PYTHON", "llamacpp": "SFTRL_LLAMACPP_PYTHON"}
"""Peers with an environment of their own, and the variable that names its Python."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What the floors need to know of the model."""

    vocabulary: int
    bytes: int
    products: int
    """Elements of the matrices that every token is multiplied with."""


@dataclass(slots=True)
class Side:
    """Asks one implementation; its n-th request is the same as every other side's n-th."""

    ask: Callable[[dict[str, object]], object]
    vocabulary: int
    asked: dict[tuple[int, int], int] = field(default_factory=dict)

    def run(self, sequences: int, new_tokens: int) -> None:
        """Generate; what comes back is as much as was asked for."""
        turn = self.asked.get((sequences, new_tokens), 0)
        self.asked[sequences, new_tokens] = turn + 1
        answer = self.ask(request(sequences, new_tokens, turn, self.vocabulary))
        if isinstance(answer, Mapping) and answer["tokens"] != [new_tokens] * sequences:
            raise PeerError(f"asked for {sequences} x {new_tokens} tokens, got {answer['tokens']}")


def request(sequences: int, new_tokens: int, turn: int, vocabulary: int) -> dict[str, object]:
    """Prompts of random tokens, which no cache has seen: each turn has its own."""
    rng = random.Random(f"{sequences} {new_tokens} {turn}")
    samples = min(GROUP, sequences)
    prompts = [rng.choices(range(vocabulary), k=PROMPT_TOKENS) for _ in range(sequences // samples)]
    return {"prompts": prompts, "samples": samples, "new_tokens": new_tokens, "seed": turn}


def options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(threads=THREADS)
    parser.add_argument("--model", default="smollm2-135m", metavar="NAME", help="smollm2-135m, or a folder")
    parser.add_argument("--sides", nargs="+", choices=[*own.SIDES, *INSTALLED], help="all but the others")
    parser.add_argument("--sequences", nargs="+", type=int, metavar="N", help="1, or multiples of 8")
    parser.add_argument("--images", action="store_true", help="answers to pictures; see bench_pictures.py")
    parser.add_argument("--repeat", type=int, default=REPEAT, metavar="N", help="timed runs of each side")
    for peer, variable in INSTALLED.items():
        help_text = f"Python of {peer}'s environment; default: ${variable}"
        parser.add_argument(
            f"--{peer}-python", default=os.environ.get(variable), metavar="PATH", help=help_text
        )


def prepare(bench: Bench) -> tuple[Weights, dict[str, list[str]]]:
    """The model's sizes, and the command of each side that can be started, the slowest to start first."""
    args = bench.args
    language = load(args.model, dtype="bfloat16", device=str(machine_device()))
    wanted = args.sides or [*own.SIDES, *INSTALLED]
    commands: dict[str, list[str]] = {}
    for peer, variable in INSTALLED.items():
        python = getattr(args, f"{peer}_python")
        if peer not in wanted:
            continue
        if not python:
            bench.missing(peer, f"no --{peer}-python and no {variable}")
            continue
        path = folder(language, args.model) if peer == "vllm" else gguf_file(language.model, args.model)
        commands[peer] = [python, str(PEERS / f"{peer}_worker.py"), str(path), str(args.threads)]
    for side in own.SIDES:
        if side in wanted:
            commands[side] = [
                sys.executable,
                str(PEERS / "own.py"),
                side,
                args.model,
                str(args.threads),
            ]
    embedding = language.model.get_input_embeddings().weight
    matrices = {id(p): p for p in language.model.parameters() if p.dim() == 2}
    if language.model.get_output_embeddings().weight is not embedding:
        del matrices[id(embedding)]  # looked up, not multiplied
    products = sum(p.numel() for p in matrices.values())
    return Weights(embedding.shape[0], products * embedding.itemsize, products), commands


@contextmanager
def started(bench: Bench, weights: Weights, commands: Mapping[str, list[str]]) -> Iterator[dict[str, Peer]]:
    """Start the workers and try each; those that cannot run are named as missing, with their error."""
    env = worker_env(bench.args.threads)
    running: dict[str, Peer] = {}
    with ExitStack() as stack:
        for name, command in commands.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            # A peer's interpreter must not find this environment's packages.
            own_env = env if name in own.SIDES else env | {"PYTHONPATH": ""}
            try:
                peer = stack.enter_context(
                    Peer(command, ROOT / "build" / "bench_rollout" / f"{name}.log", own_env)
                )
                answer = peer.ask(request(1, 2, 0, weights.vocabulary))
            except PeerError as error:
                bench.missing(name, str(error))
                continue
            running[name] = peer
            if not any(answer["logprobs"]):
                print(f"{name} gives no log-probabilities")
        yield {name: running[name] for name in (*own.SIDES, *INSTALLED) if name in running}


def floors(weights: Weights, threads: int) -> Callable[[int, int], tuple[float, float]]:
    """Seconds that prompts and one step cannot go below here, from (tokens of all prompts, sequences)."""
    torch.set_num_threads(threads)
    device = machine_device()
    bandwidth, rate = copy_bandwidth(device), matrix_rate(torch.bfloat16, device)
    print(f"copy {bandwidth / 1e9:.1f} GB/s, bfloat16 products {rate / 1e9:.0f} GFLOP/s")

    def of_rows(rows: int) -> float:
        return max(weights.bytes / bandwidth, 2 * weights.products * rows / rate)

    return lambda prompts, sequences: (of_rows(prompts), of_rows(sequences))


def bench_case(
    bench: Bench,
    sides: Mapping[str, Side],
    peers: Mapping[str, Peer],
    floor: Callable[[int, int], tuple[float, float]],
    sequences: int,
) -> None:
    """First tokens, then whole answers; the speed of decoding is what lies between the two."""
    case, new_tokens = f"seqs={sequences}", QUICK_NEW_TOKENS if bench.args.quick else NEW_TOKENS
    first = bench.compare(
        case,
        "time to first token",
        "ms",
        {name: partial(side.run, sequences, 1) for name, side in sides.items()},
        ratio_to=BASE,
        repeat=bench.args.repeat,
        scale="ms",
        memory=False,
    )
    tokens = sequences * new_tokens
    whole = bench.compare_rate(
        case,
        "tokens_per_s",
        "tokens/s",
        {name: partial(side.run, sequences, new_tokens) for name, side in sides.items()},
        work=tokens,
        ratio_to=BASE,
        repeat=bench.args.repeat,
        warmup=0 if new_tokens == NEW_TOKENS else 1,
        pids={name: peer.pids for name, peer in peers.items()},
    )
    speeds = {n: (tokens - sequences) / (whole[n] - first[n]) for n in sides if whole[n] > first[n]}
    for name, speed in speeds.items():
        ratio = (BASE, speed / speeds[BASE]) if BASE in speeds else (None, None)
        bench.value(case, name, "decode_tokens_per_s", speed, "tokens/s", *ratio)
    prompts = sequences // min(GROUP, sequences) * PROMPT_TOKENS
    prefill, step = floor(prompts, sequences)
    bench.value(case, "floor", "time to first token", prefill * 1e3, "ms")
    bench.value(case, "floor", "tokens_per_s", tokens / (prefill + (new_tokens - 1) * step), "tokens/s")
    bench.value(case, "floor", "decode_tokens_per_s", sequences / step, "tokens/s")


def main() -> None:
    bench = Bench("rollout", __doc__ or "", options=options)
    args = bench.args
    if args.images:
        for name in MODELS:
            bench_model(bench, name, args.repeat)
        bench.finish()
        return
    weights, commands = prepare(bench)
    floor = floors(weights, args.threads)
    counts = args.sequences or (QUICK_SEQUENCES if args.quick else SEQUENCES)
    if args.profile:  # the profiler sees its own process only
        local = [side for side in own.SIDES if side in commands]
        made = {side: own.make(side, args.model, args.threads) for side in local}
        for sequences in counts:
            bench_case(bench, {n: Side(g, weights.vocabulary) for n, g in made.items()}, {}, floor, sequences)
    else:
        with started(bench, weights, commands) as peers:
            sides = {name: Side(peer.ask, weights.vocabulary) for name, peer in peers.items()}
            for sequences in counts:
                print(f"{sequences} sequences", file=sys.stderr, flush=True)
                bench_case(bench, sides, peers, floor, sequences)
    bench.finish()


if __name__ == "__main__":
    main()
