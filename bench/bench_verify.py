"""Cards: response text to verdict through Python in batches of 4,096, and the solver over every hand.

The Python sides are plain Python forms of the published check and solver (``points_reference.py``), on one
thread like the compiled ones. The check is given the solutions of its hand ready made, as the published code
makes them when it deals; the compiled ``reference`` rewards keep theirs after the first run too.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

import points_reference as published
from harness import Bench
from sftrl_fast import hands, solve, verify

RULE = "face11-13"  # ranks are numbers here, so the Python sides need no rule
TARGET = 24
BATCH = 4096
PYTHON_BATCH = 512  # the first part of the batch; times are given for one response
DISTINCT_HANDS = 16


def answer(ranks: list[int], formula: str) -> str:
    cards = ", ".join(f'"{published.RANK_NAMES[rank - 1]}"' for rank in ranks)
    return f'{{"cards": [{cards}], "number": {ranks}, "formula": "{formula}={TARGET}"}}'


def responses(rng: random.Random, size: int) -> tuple[list[list[int]], list[str]]:
    """Hands and answers as a half-trained model gives them.

    A third right, a third of a wrong value or right by chance, a sixth with a wrong number, a sixth malformed.
    """
    table = hands(RULE, TARGET).tolist()
    dealt = [rng.sample(ranks, 4) for ranks in rng.sample(table, DISTINCT_HANDS)]
    ranks_of, texts = [], []
    for i in range(size):
        ranks = dealt[i % DISTINCT_HANDS]
        a, b, c, d = rng.sample(ranks, 4)
        o, p, q = rng.choices("+-*/", k=3)
        formula = rng.choice(
            [f"{a}{o}{b}{p}{c}{q}{d}", f"({a}{o}{b}){p}{c}{q}{d}", f"({a}{o}{b}){p}({c}{q}{d})"]
        )
        kind = rng.randrange(6)
        if kind < 2:
            formula = rng.choice(solve(ranks, TARGET))
        elif kind == 4:
            formula = formula.replace(str(a), str(a + 1), 1)
        elif kind == 5:
            formula = formula[: rng.randrange(1, len(formula))] + "("
        ranks_of.append(ranks)
        texts.append(answer(ranks, formula))
    return ranks_of, texts


def python_check(ranks: list[list[int]], texts: list[str], times: int) -> Callable[[], object]:
    """``times`` runs over the texts, so that both sides do the same number of responses."""
    solutions = [published.stored_solutions(tuple(sorted(row)), TARGET) for row in ranks]
    rows = list(zip(texts, ranks, solutions, strict=True)) * times
    return lambda: [published.verify(text, row, row, TARGET, False, known) for text, row, known in rows]


def bench_verify(bench: Bench) -> None:
    size = BATCH // 16 if bench.args.quick else BATCH
    ranks, texts = responses(random.Random(1), size)
    array = np.array(ranks)
    part = min(size, PYTHON_BATCH)
    check = python_check(ranks[:part], texts[:part], size // part)

    def compiled(rewards: str) -> Callable[[], object]:
        return lambda: verify(texts, array, rule=RULE, target=TARGET, rewards=rewards)

    def with_messages() -> object:
        return verify(texts, array, rule=RULE, target=TARGET).messages()

    bench.compare(
        f"batch={size}",
        "time a response",
        "us",
        {
            "cpp exact": compiled("exact"),
            "cpp exact with messages": with_messages,
            "cpp reference": compiled("reference"),
            "published check, our Python": check,
        },
        per=size,
        ratio_to="published check, our Python",
        repeat=5,
        scale="us",
    )


def bench_solve(bench: Bench) -> None:
    every = hands(RULE, TARGET, solvable=None).tolist()
    few = random.Random(2).sample(every, 1 if bench.args.quick else 4)

    def brute_force() -> object:
        published.stored_solutions.cache_clear()
        return [published.stored_solutions(tuple(hand), TARGET) for hand in few]

    bench.compare(
        f"solve, {len(few)} hands",
        "time a hand",
        "us",
        {"cpp": lambda: [solve(hand, TARGET) for hand in few], "brute force, our Python": brute_force},
        per=len(few),
        ratio_to="brute force, our Python",
        repeat=3,
        scale="us",
    )
    if not bench.args.quick:
        bench.compare(
            f"solve, all {len(every)} hands",
            "time",
            "s",
            {"cpp": lambda: [solve(hand, TARGET) for hand in every]},
            ratio_to="cpp",
        )


def main() -> None:
    bench = Bench("verify", __doc__ or "")
    bench.missing(
        "the published code itself",
        "not installable; 79 us a response and 0.26 s a hand were measured before",
    )
    bench_verify(bench)
    bench_solve(bench)
    bench.finish()


if __name__ == "__main__":
    main()
