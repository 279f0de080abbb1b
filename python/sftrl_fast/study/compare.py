"""Rates, intervals and paired tests over items and seeds; the content of ``results.json``.

Two sources of chance are kept apart, since neither stands for the other:

* **questions** - another draw of items of the same kind would score differently. The same items stand under every
  seed, and several items may ask one question (``10 J 4 1`` and ``Q Q 4 1`` where J and Q count as 10), so outcomes
  are clustered by question and ``seeds x items`` answers are not that many independent trials.
* **seeds** - another warm-up, data order and set of samples would end in another model.

A *rate*'s interval covers the sampling of questions, for the models of this run: Wilson's at the effective number
of independent answers (:func:`clustered_wilson`). A *difference* carries two intervals: over seeds (Student's t, the
``low``/``high``/``p`` of a study with two seeds or more) and over questions (``questions``). With one seed nothing can
be said about others, and both are over questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BoolVector = NDArray[np.bool_]
IntVector = NDArray[np.integer[Any]]
Evaluations = Mapping[int, Mapping[str, Mapping[str, Sequence[bool] | BoolVector]]]
"""seed -> arm -> set -> success of each item, the same items in the same order for every seed and arm."""

ARMS = ("base", "warmup", "sft", "rl")
SETS = ("id_seen", "id", "rule_ood", "visual_ood")
DIFFERENCES = (("rl", "warmup"), ("sft", "warmup"), ("rl", "sft"))
"""Pairs ``(b, a)``; the difference is the rate of ``b`` less the rate of ``a``, under the key ``"b-a"``."""

BOOTSTRAP_REPLICATES = 20_000
INTERVALS = {
    "rates": "sampling of questions, models given: Wilson at the question-clustered effective n",
    "differences_seeds": "seed-to-seed variation: Student's t over the per-seed differences",
    "differences_questions": "sampling of questions, models given: exact sign-flip p by question; bootstrap over "
    "questions, or Newcombe's paired score interval with one seed and one item a question",
}


@dataclass(frozen=True, slots=True)
class SeedDifference:
    """Arm ``b`` against arm ``a`` under one seed."""

    difference: float
    gained: int
    """Items only ``b`` solves."""
    lost: int
    """Items only ``a`` solves."""
    p: float
    """Exact, by question: McNemar's where each item is a question of its own."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The rate of ``b`` less the rate of ``a``: over seeds where there are two or more, else over questions."""

    mean: float
    low: float
    high: float
    p: float | None
    """None if every seed shows one and the same difference other than 0: a t-test has no scale then."""
    questions_low: float
    questions_high: float
    questions_p: float
    per_seed: dict[int, SeedDifference]


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial rate (Wilson 1927, JASA 22:209); ``(0, 1)`` when nothing was tried.

    Real-valued arguments are allowed, for an effective sample size.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == n else min(1.0, float(centre + half))
    return low, high


def clustered_wilson(
    successes: IntVector, seeds: int, confidence: float = 0.95, questions: IntVector | None = None
) -> tuple[float, float]:
    """Wilson's interval of the mean rate, outcomes clustered by question.

    Args:
        successes: in how many of the ``seeds`` each item was solved, ``[n]``.
        questions: the question each item asks, ``[n]``; None if no two ask the same.

    The effective number of answers (Korn & Graubard 1998, Surv. Methodol. 24:193; with Wilson's interval:
    Dean & Pagano 2015, J. Surv. Stat. Methodol. 3:484) is ``rate (1 - rate) / Var(mean over items)``, the variance of
    a ratio estimate over the questions, held between their number (all answers to a question alike; also assumed
    at a rate of 0 or 1, where nothing can be estimated) and ``seeds * n`` (independent). With one seed and one item
    a question that is plain Wilson.
    """
    n = len(successes)
    if n == 0:
        return 0.0, 1.0
    solved, items = _by_question(successes, questions)
    rate, clusters = float(solved.sum()) / (seeds * n), len(items)
    effective = float(clusters)
    if clusters > 1 and 0 < rate < 1:
        residuals = solved / seeds - rate * items
        variance = float(np.square(residuals).sum()) * clusters / (clusters - 1) / n**2
        most = seeds * n
        effective = most if variance == 0 else min(max(rate * (1 - rate) / variance, clusters), most)
    return wilson(min(rate * effective, effective), effective, confidence)


def _by_question(counts: IntVector, questions: IntVector | None) -> tuple[IntVector, IntVector]:
    """``(sum of counts, number of items)`` of each question."""
    if questions is None:
        return counts, np.ones(len(counts), dtype=np.int64)
    _, index = np.unique(questions, return_inverse=True)
    items = np.bincount(index)
    sums = np.zeros(len(items), dtype=np.int64)
    np.add.at(sums, index, counts)
    return sums, items


def mcnemar(a: BoolVector, b: BoolVector) -> tuple[int, int, float]:
    """Exact two-sided McNemar test of two arms on the same items, ``[n]`` each.

    Returns ``(b_only, a_only, p)``: items only ``b`` solves, items only ``a`` solves, and the p-value of the
    discordant items under a fair coin; 1 if there are none.
    """
    if a.shape != b.shape:
        raise ValueError(f"arms were evaluated on different items: {a.shape} against {b.shape}")
    b_only = int(np.sum(b & ~a))
    a_only = int(np.sum(a & ~b))
    discordant = a_only + b_only
    p = float(stats.binomtest(b_only, discordant, 0.5).pvalue) if discordant else 1.0
    return b_only, a_only, p


def newcombe_paired(a: BoolVector, b: BoolVector, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of ``rate(b) - rate(a)`` on the same items (Newcombe 1998, Stat. Med. 17:2635, method 10).

    Built from the two Wilson intervals and their correlation; unlike Wald's it does not collapse when no item
    is discordant.
    """
    n = len(a)
    both, neither = int(np.sum(a & b)), int(np.sum(~a & ~b))
    b_only, a_only, _ = mcnemar(a, b)
    rate_a, rate_b = (both + a_only) / n, (both + b_only) / n
    (low_a, high_a), (low_b, high_b) = (
        wilson(both + a_only, n, confidence),
        wilson(both + b_only, n, confidence),
    )
    margins = (both + b_only) * (a_only + neither) * (both + a_only) * (b_only + neither)
    covariance = float(both * neither - b_only * a_only)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / np.sqrt(margins) if margins else 0.0
    down, up = rate_b - low_b, high_b - rate_b
    down_a, up_a = rate_a - low_a, high_a - rate_a
    low = rate_b - rate_a - np.sqrt(max(down**2 - 2 * phi * down * up_a + up_a**2, 0.0))
    high = rate_b - rate_a + np.sqrt(max(up**2 - 2 * phi * up * down_a + down_a**2, 0.0))
    return max(-1.0, float(low)), min(1.0, float(high))


def sign_flip_p(differences: IntVector, questions: IntVector | None = None) -> float:
    """Exact two-sided p-value that arms are exchangeable on each question, all its items and seeds flipped together.

    Args:
        differences: for each item, in how many more seeds ``b`` solved it than ``a``, ``[n]``.
        questions: the question each item asks, ``[n]``; None if no two ask the same.

    The null distribution of the sum is found by convolution, not by sampling. One seed and one item a question give
    McNemar's exact test.
    """
    differences, _ = _by_question(differences, questions)
    observed = abs(int(differences.sum()))
    null = np.ones(1)
    for size, count in zip(
        *np.unique(np.abs(differences[differences != 0]), return_counts=True), strict=True
    ):
        spread = np.zeros(2 * int(size) * int(count) + 1)
        spread[:: 2 * int(size)] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        null = np.convolve(null, spread)
    reach = (len(null) - 1) // 2
    return float(min(1.0, null[np.abs(np.arange(-reach, reach + 1)) >= observed].sum()))


def bootstrap_questions(
    differences: IntVector, seeds: int, confidence: float = 0.95, questions: IntVector | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean difference in rate, questions resampled with all items and seeds.

    Args:
        differences: for each item, in how many more of the ``seeds`` ``b`` solved it than ``a``, ``[n]``.
        questions: the question each item asks, ``[n]``; None if no two ask the same.

    Questions with one sum and number of items are interchangeable, so a multinomial draw of their counts is the same
    bootstrap. Its random numbers are fixed: the same data gives the same interval.
    """
    pairs, counts = np.unique(np.stack(_by_question(differences, questions)), axis=1, return_counts=True)
    clusters = int(counts.sum())
    draws = np.random.default_rng(0).multinomial(clusters, counts / clusters, size=BOOTSTRAP_REPLICATES)
    sums, items = draws @ pairs[0], draws @ pairs[1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(sums / (items * seeds), [tail, 1 - tail])
    return float(low), float(high)


def student_t(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float | None]:
    """``(low, high, p)`` of the mean of two or more per-seed differences; ``p`` is two-sided against 0."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return mean, mean, 1.0 if mean == 0 else None
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1))
    return float(mean - half), float(mean + half), p


def paired_difference(
    per_seed_a: Mapping[int, BoolVector],
    per_seed_b: Mapping[int, BoolVector],
    confidence: float = 0.95,
    questions: IntVector | None = None,
) -> PairedDifference:
    """``rate(b) - rate(a)``, each argument seed -> success of each item ``[n]``; ``questions`` as elsewhere.

    Raises:
        ValueError: the arms do not have the same seeds or the same number of items.
    """
    if not per_seed_a or set(per_seed_a) != set(per_seed_b):
        raise ValueError(f"arms must share their seeds, got {sorted(per_seed_a)} and {sorted(per_seed_b)}")
    per_seed = {}
    for seed in sorted(per_seed_a):
        a, b = per_seed_a[seed], per_seed_b[seed]
        gained, lost, _ = mcnemar(a, b)
        p = sign_flip_p(b.astype(np.int64) - a.astype(np.int64), questions)
        per_seed[seed] = SeedDifference((gained - lost) / len(a), gained, lost, p)
    seeds = list(per_seed)
    by_item = _per_item(per_seed_b) - _per_item(per_seed_a)
    mean = float(np.mean([d.difference for d in per_seed.values()]))
    p_questions = sign_flip_p(by_item, questions)
    if len(seeds) == 1 and (questions is None or len(np.unique(questions)) == len(by_item)):
        over = newcombe_paired(per_seed_a[seeds[0]], per_seed_b[seeds[0]], confidence)
    else:
        over = bootstrap_questions(by_item, len(seeds), confidence, questions)
    if len(seeds) == 1:
        return PairedDifference(mean, *over, p_questions, *over, p_questions, per_seed)
    low, high, p_seeds = student_t([d.difference for d in per_seed.values()], confidence)
    return PairedDifference(mean, low, high, p_seeds, *over, p_questions, per_seed)


def build_results(
    evaluations: Evaluations,
    *,
    questions: Mapping[str, Sequence[int]] | None = None,
    compute: Mapping[str, Mapping[str, float]] | None = None,
    rates: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """The content of ``results.json``: plain, JSON-serialisable, in one order whatever the input's order.

    Args:
        evaluations: seed -> arm -> set -> success of each item; an arm or set is absent under all seeds or
            none.
        questions: set -> the question each item asks; a set that is not named asks another with every item.
        compute: arm -> ``samples, tokens, flops, flops_executed, seconds``, passed through.
        rates: name -> arm -> set -> what the task counts beside success, passed through.

    Raises:
        ValueError: a set is empty, or seeds or arms differ in what they were evaluated on.
    """
    arms, sets = _checked_names(evaluations)
    asks = {name: np.asarray(labels, dtype=np.int64) for name, labels in (questions or {}).items()}
    outcomes = {
        arm: {
            name: {seed: np.asarray(evaluations[seed][arm][name], dtype=bool) for seed in sorted(evaluations)}
            for name in sets
        }
        for arm in arms
    }
    per_seed: dict[str, Any] = {
        str(seed): {
            arm: {name: _rate({seed: outcomes[arm][name][seed]}, confidence, asks.get(name)) for name in sets}
            for arm in arms
        }
        for seed in sorted(evaluations)
    }
    pairs = [(b, a) for b, a in DIFFERENCES if b in outcomes and a in outcomes]
    return {
        "arms": {
            arm: {name: _rate(outcomes[arm][name], confidence, asks.get(name)) for name in sets}
            for arm in arms
        },
        "seeds": per_seed,
        "differences": {
            f"{b}-{a}": {
                name: _difference_row(
                    paired_difference(outcomes[a][name], outcomes[b][name], confidence, asks.get(name))
                )
                for name in sets
            }
            for b, a in pairs
        },
        "questions": {name: len(np.unique(asks[name])) for name in sets if name in asks},
        "compute": {arm: dict(compute[arm]) for arm in ordered(compute, ARMS)} if compute else {},
        "rates": {
            name: {arm: dict(cells) for arm, cells in arms.items()} for name, arms in (rates or {}).items()
        },
        "confidence": confidence,
        "intervals": INTERVALS,
    }


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """``names`` without repeats, those of ``first`` in its order, then the rest by the alphabet."""
    unique = set(names)
    return [name for name in first if name in unique] + sorted(unique.difference(first))


def _checked_names(evaluations: Evaluations) -> tuple[list[str], list[str]]:
    if not evaluations:
        raise ValueError("no evaluations: at least one seed is needed")
    arms = ordered((arm for by_arm in evaluations.values() for arm in by_arm), ARMS)
    sets = ordered((s for by_arm in evaluations.values() for by_set in by_arm.values() for s in by_set), SETS)
    for name in sets:
        sizes = set()
        for seed, by_arm in evaluations.items():
            for arm in arms:
                if arm not in by_arm or name not in by_arm[arm]:
                    raise ValueError(
                        f"seed {seed} lacks arm {arm!r} on set {name!r}, which another evaluation has"
                    )
                sizes.add(len(by_arm[arm][name]))
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"set {name!r} must hold the same items throughout, got sizes {sorted(sizes)}")
    return arms, sets


def _per_item(per_seed: Mapping[int, BoolVector]) -> NDArray[np.int64]:
    """In how many seeds each item was solved, ``[n]``."""
    counts: NDArray[np.int64] = np.sum([v for _, v in sorted(per_seed.items())], axis=0, dtype=np.int64)
    return counts


def _rate(
    per_seed: Mapping[int, BoolVector], confidence: float, questions: IntVector | None
) -> dict[str, float]:
    counts = _per_item(per_seed)
    low, high = clustered_wilson(counts, len(per_seed), confidence, questions)
    successes, n = int(counts.sum()), len(counts) * len(per_seed)
    return {"successes": successes, "n": n, "rate": successes / n, "low": low, "high": high}


def _difference_row(d: PairedDifference) -> dict[str, Any]:
    return {
        "mean": d.mean,
        "low": d.low,
        "high": d.high,
        "p": d.p,
        "questions": {"low": d.questions_low, "high": d.questions_high, "p": d.questions_p},
        "per_seed": {
            str(seed): {
                "difference": s.difference,
                "gained": s.gained,
                "lost": s.lost,
                "p": s.p,
            }
            for seed, s in d.per_seed.items()
        },
    }
