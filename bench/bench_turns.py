"""Revision turns: what five turns of 64 episodes encode and cost, with keys and values kept between them and without.

Random tokens, SmolLM2 in bfloat16, groups of 8 on prompts of 130 tokens; every answer has 40 tokens, every reply 30.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

from harness import Bench, machine_device
from peers.own import hf_backend, native
from sftrl_fast.models.load import load
from sftrl_fast.rollout.request import Engine, Request, RequestKey, SamplingParams

EPISODES, GROUP, TURNS = 64, 8, 5
PROMPT_TOKENS, ANSWER_TOKENS, REPLY_TOKENS = 130, 40, 30
QUICK_EPISODES = 8
BASE = "native"
THREADS = 2


def options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(threads=THREADS)
    parser.add_argument("--model", default="smollm2-135m", metavar="NAME", help="smollm2-135m, or a folder")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="timed runs of each side")


def play(engine: Engine, vocabulary: int, episodes: int, *, keeps: bool) -> int:
    """All turns of all episodes, one turn of everybody after the other; positions that the model computed."""
    rng = random.Random(0)
    prompts = [rng.choices(range(vocabulary), k=PROMPT_TOKENS) for _ in range(episodes // GROUP)]
    contexts = [list(prompts[episode // GROUP]) for episode in range(episodes)]
    before = engine.counters.executed_tokens
    for turn in range(TURNS):
        requests = [
            Request(list(context), RequestKey(0, 0, i // GROUP, i % GROUP, turn), i if keeps else None)
            for i, context in enumerate(contexts)
        ]
        for context, answer in zip(
            contexts, engine.generate(requests, SamplingParams(ANSWER_TOKENS)), strict=True
        ):
            context += answer.token_ids + rng.choices(range(vocabulary), k=REPLY_TOKENS)
    for episode in range(episodes if keeps else 0):
        engine.close(episode)
    return engine.counters.executed_tokens - before


def added(episodes: int) -> int:
    """Tokens that are new: a group's prompt once, every answer and every reply that is read."""
    return episodes // GROUP * PROMPT_TOKENS + episodes * (TURNS * ANSWER_TOKENS + (TURNS - 1) * REPLY_TOKENS)


def main() -> None:
    bench = Bench("turns", __doc__ or "", options=options)
    episodes = QUICK_EPISODES if bench.args.quick else EPISODES
    model = load(bench.args.model, dtype="bfloat16", device=str(machine_device())).model
    vocabulary = model.get_input_embeddings().weight.shape[0]
    engines: dict[str, tuple[Engine, bool]] = {
        BASE: (native(model), True),
        "native, nothing kept": (native(model), False),
        "hf": (hf_backend(model), False),
    }
    executed: dict[str, int] = {}

    def side(name: str) -> Callable[[], None]:
        engine, keeps = engines[name]

        def run() -> None:
            executed[name] = play(engine, vocabulary, episodes, keeps=keeps)

        return run

    case, new = f"{episodes} episodes, {TURNS} turns", added(episodes)
    sides = {name: side(name) for name in engines}
    bench.compare(case, "time", "s", sides, ratio_to=BASE, repeat=bench.args.repeat)
    for name, tokens in executed.items():
        bench.value(case, name, "tokens computed", tokens, "")
        bench.value(case, name, "tokens computed / tokens added", tokens / new, "")
    bench.value(case, "floor", "tokens added", new, "")
    bench.finish()


if __name__ == "__main__":
    main()
