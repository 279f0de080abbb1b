from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sftrl_fast.study.compare import (
    ARMS,
    BoolVector,
    bootstrap_questions,
    build_results,
    clustered_wilson,
    mcnemar,
    newcombe_paired,
    paired_difference,
    sign_flip_p,
    student_t,
    wilson,
)


def paired(both: int, b_only: int, a_only: int, neither: int) -> tuple[BoolVector, BoolVector]:
    """Outcome vectors ``(a, b)`` with these four cell counts."""
    a = np.array([True] * both + [False] * b_only + [True] * a_only + [False] * neither)
    b = np.array([True] * both + [True] * b_only + [False] * a_only + [False] * neither)
    return a, b


cells = st.tuples(*[st.integers(0, 25)] * 4).filter(lambda c: sum(c) > 0)


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, max(n, 1)), st.just(max(n, 1)))))
def test_wilson_agrees_with_scipy(trial: tuple[int, int]) -> None:
    successes, n = trial
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_refuses_more_successes_than_trials() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_mcnemar_agrees_with_a_count_by_hand() -> None:
    a, b = paired(both=3, b_only=1, a_only=6, neither=90)
    gained, lost, p = mcnemar(a, b)
    assert (gained, lost) == (1, 6)
    assert p == pytest.approx(2 * (1 + 7) / 2**7)


def test_mcnemar_without_discordant_items_finds_nothing() -> None:
    assert mcnemar(*paired(4, 0, 0, 9)) == (0, 0, 1.0)


def test_mcnemar_refuses_different_items() -> None:
    with pytest.raises(ValueError, match="different items"):
        mcnemar(np.zeros(3, bool), np.zeros(4, bool))


def test_newcombe_reproduces_the_published_example() -> None:
    """Newcombe 1998 (Stat. Med. 17:2635), table III, cells 36, 12, 2, 0 by method 10."""
    low, high = newcombe_paired(*paired(36, 12, 2, 0))
    assert (low, high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


@given(cells)
def test_newcombe_holds_the_difference_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    a, b = paired(*counts)
    low, high = newcombe_paired(a, b)
    assert -1 <= low <= b.mean() - a.mean() <= high <= 1
    assert newcombe_paired(b, a) == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_does_not_collapse_on_identical_arms() -> None:
    low, high = newcombe_paired(*paired(0, 0, 0, 100))
    assert low < 0 < high


@given(cells)
def test_sign_flip_of_one_seed_is_mcnemar(counts: tuple[int, int, int, int]) -> None:
    a, b = paired(*counts)
    assert sign_flip_p(b.astype(int) - a.astype(int)) == pytest.approx(mcnemar(a, b)[2], abs=1e-9)


def exhaustive_sign_flip(differences: Sequence[int]) -> float:
    moved = [d for d in differences if d]
    signs = ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1) * 2 - 1
    return float(np.mean(np.abs(signs @ np.array(moved, dtype=int)) >= abs(sum(moved))))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_sign_flip_agrees_with_trying_every_flip(differences: list[int]) -> None:
    assert sign_flip_p(np.array(differences)) == pytest.approx(exhaustive_sign_flip(differences), abs=1e-9)


def test_repeating_a_seed_adds_no_evidence() -> None:
    """Three copies of one seed are one seed: treating 3n answers as independent would shrink all of these."""
    a, b = paired(both=5, b_only=12, a_only=4, neither=179)
    once = paired_difference({0: a}, {0: b})
    thrice = paired_difference(dict.fromkeys(range(3), a), dict.fromkeys(range(3), b))
    assert thrice.questions_p == pytest.approx(once.questions_p)
    assert thrice.mean == pytest.approx(once.mean)
    assert clustered_wilson(3 * a.astype(int), 3) == pytest.approx(wilson(int(a.sum()), len(a)))
    expected = bootstrap_questions(b.astype(int) - a.astype(int), 1)
    assert (thrice.questions_low, thrice.questions_high) == pytest.approx(expected)


def test_independent_seeds_add_evidence_up_to_all_their_answers() -> None:
    rng = np.random.default_rng(1)
    counts = rng.binomial(3, 0.3, size=4_000)
    low, high = clustered_wilson(counts, 3)
    one_low, one_high = wilson(0.3 * 4_000, 4_000)
    all_low, all_high = wilson(0.3 * 12_000, 12_000)
    assert all_high - all_low <= (high - low) * 1.05 < one_high - one_low


@pytest.mark.parametrize("solved", [0, 3])
def test_rate_at_the_edge_is_as_uncertain_as_one_seed(solved: int) -> None:
    counts = np.full(50, solved)
    assert clustered_wilson(counts, 3) == pytest.approx(wilson(50 if solved else 0, 50))


@pytest.mark.parametrize("seeds", [1, 3])
def test_clustered_interval_covers_the_rate_as_often_as_it_says(seeds: int) -> None:
    """Items differ in difficulty and all seeds share it; 600 repetitions, 3 standard errors."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        difficulty = rng.beta(0.3, 0.9, size=200)
        low, high = clustered_wilson(rng.binomial(seeds, difficulty), seeds)
        covered += low <= 0.25 <= high
    assert abs(covered / 600 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 600)


def test_bootstrap_is_repeatable_and_close_to_the_normal_interval() -> None:
    differences = np.array([1] * 60 + [-1] * 20 + [2] * 10 + [0] * 310)
    low, high = bootstrap_questions(differences, 3)
    assert (low, high) == bootstrap_questions(differences, 3)
    rate = differences / 3
    half = 1.96 * rate.std(ddof=1) / np.sqrt(len(rate))
    assert (low, high) == pytest.approx((rate.mean() - half, rate.mean() + half), abs=0.002)


def test_student_t_agrees_with_scipy() -> None:
    differences = [0.021, 0.035, 0.004]
    reference = stats.ttest_1samp(differences, 0.0)
    interval = reference.confidence_interval(0.95)
    assert student_t(differences) == pytest.approx((interval.low, interval.high, reference.pvalue))


def test_student_t_without_spread_claims_no_p() -> None:
    assert student_t([0.0, 0.0, 0.0]) == (0.0, 0.0, 1.0)
    assert student_t([0.1, 0.1]) == (0.1, 0.1, None)


def test_one_seed_is_judged_over_questions() -> None:
    a, b = paired(both=10, b_only=9, a_only=1, neither=80)
    result = paired_difference({7: a}, {7: b})
    assert result.mean == pytest.approx(0.08)
    assert (result.low, result.high) == newcombe_paired(a, b)
    assert result.p == pytest.approx(mcnemar(a, b)[2])
    assert result.per_seed[7].gained == 9
    assert result.per_seed[7].lost == 1


def test_several_seeds_are_judged_over_seeds() -> None:
    """Each seed alone is significant over questions; that the seeds disagree must show."""
    a, b = paired(both=0, b_only=30, a_only=0, neither=70)
    result = paired_difference({0: a, 1: b}, {0: b, 1: a})
    assert [s.difference for s in result.per_seed.values()] == [pytest.approx(0.3), pytest.approx(-0.3)]
    assert result.mean == pytest.approx(0.0)
    assert result.low < -1 < 1 < result.high
    assert all(s.p < 1e-6 for s in result.per_seed.values())


def test_arms_with_other_seeds_are_refused() -> None:
    a = np.zeros(3, bool)
    with pytest.raises(ValueError, match="share their seeds"):
        paired_difference({0: a}, {1: a})


def evaluations(seeds: Sequence[int]) -> dict[int, dict[str, dict[str, list[bool]]]]:
    rng = np.random.default_rng(3)
    rates = {"rl": 0.4, "base": 0.1, "sft": 0.05, "warmup": 0.2}
    return {
        seed: {
            arm: {name: (rng.random(40) < rate).tolist() for name in ("rule_ood", "id", "id_seen")}
            for arm, rate in rates.items()
        }
        for seed in seeds
    }


def test_results_are_json_in_one_order() -> None:
    data = evaluations([2, 0, 1])
    results = build_results(data, compute={"rl": {"seconds": 1.5}, "sft": {"seconds": 2.0}})
    reordered = {seed: dict(reversed(arms.items())) for seed, arms in reversed(data.items())}
    again = build_results(reordered, compute={"sft": {"seconds": 2.0}, "rl": {"seconds": 1.5}})
    assert json.dumps(results, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert list(results["arms"]) == list(ARMS)
    assert list(results["arms"]["rl"]) == ["id_seen", "id", "rule_ood"]
    assert list(results["seeds"]) == ["0", "1", "2"]
    assert list(results["differences"]) == ["rl-warmup", "sft-warmup", "rl-sft"]
    assert list(results["compute"]) == ["sft", "rl"]


def test_results_count_what_was_put_in() -> None:
    data = evaluations([0, 1, 2])
    results = build_results(data)
    for arm in ARMS:
        per_seed = [sum(data[seed][arm]["rule_ood"]) for seed in range(3)]
        row = results["arms"][arm]["rule_ood"]
        assert (row["successes"], row["n"]) == (sum(per_seed), 120)
        assert row["rate"] == pytest.approx(np.mean(per_seed) / 40)
        assert row["low"] < row["rate"] < row["high"]
        for seed in range(3):
            cell = results["seeds"][str(seed)][arm]["rule_ood"]
            low, high = wilson(per_seed[seed], 40)
            assert cell == {
                "successes": per_seed[seed],
                "n": 40,
                "rate": pytest.approx(per_seed[seed] / 40),
                "low": pytest.approx(low),
                "high": pytest.approx(high),
            }


def test_differences_equal_the_difference_of_rates() -> None:
    results = build_results(evaluations([0, 1, 2]))
    for key, by_set in results["differences"].items():
        b, a = key.split("-")
        for name, row in by_set.items():
            rates = results["arms"]
            assert row["mean"] == pytest.approx(rates[b][name]["rate"] - rates[a][name]["rate"])
            assert row["low"] <= row["mean"] <= row["high"]
            for seed, cell in row["per_seed"].items():
                of_seed = results["seeds"][seed]
                assert cell["difference"] == pytest.approx(
                    of_seed[b][name]["rate"] - of_seed[a][name]["rate"]
                )


def test_arms_that_were_not_run_are_left_out() -> None:
    results = build_results({0: {"warmup": {"id": [True, False]}, "rl": {"id": [True, True]}}})
    assert list(results["arms"]) == ["warmup", "rl"]
    assert list(results["differences"]) == ["rl-warmup"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "at least one seed"),
        ({0: {"rl": {"id": []}}}, "same items"),
        ({0: {"rl": {"id": [True]}, "sft": {"id": [True, False]}}}, "same items"),
        ({0: {"rl": {"id": [True]}}, 1: {"rl": {"id": [True, False]}}}, "same items"),
        ({0: {"rl": {"id": [True]}}, 1: {"sft": {"id": [True]}}}, "lacks arm"),
        ({0: {"rl": {"id": [True]}}, 1: {"rl": {"rule_ood": [True]}}}, "lacks arm"),
    ],
)
def test_evaluations_that_do_not_match_are_refused(
    broken: dict[int, dict[str, dict[str, list[bool]]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_results(broken)


def test_items_of_one_question_count_as_little_as_one_when_they_agree() -> None:
    """Four items a question, all answered alike: the intervals are those of the questions alone."""
    rng = np.random.default_rng(5)
    a, b = rng.random(60) < 0.3, rng.random(60) < 0.5
    fourfold = np.repeat(np.arange(60), 4)
    a4, b4 = np.repeat(a, 4), np.repeat(b, 4)
    assert clustered_wilson(a4.astype(int), 1, questions=fourfold) == pytest.approx(
        wilson(int(a.sum()), 60), abs=2e-3
    )
    assert sign_flip_p(b4.astype(int) - a4.astype(int), fourfold) == pytest.approx(mcnemar(a, b)[2], abs=1e-9)
    many = paired_difference({0: a4, 1: a4}, {0: b4, 1: b4}, questions=fourfold)
    once = paired_difference({0: a, 1: a}, {0: b, 1: b})
    assert (many.questions_low, many.questions_high) == pytest.approx(
        (once.questions_low, once.questions_high)
    )
    assert many.per_seed[0].p == pytest.approx(mcnemar(a, b)[2], abs=1e-9)


def test_items_of_one_question_count_in_full_when_they_differ_at_random() -> None:
    rng = np.random.default_rng(6)
    solved, questions = (rng.random(4000) < 0.3).astype(int), np.repeat(np.arange(1000), 4)
    assert clustered_wilson(solved, 1, questions=questions) == pytest.approx(
        wilson(int(solved.sum()), 4000), abs=3e-3
    )


def test_bootstrap_over_questions_covers_clustered_differences() -> None:
    """Of 200 studies whose questions shift both arms' items together, some 95 % hold the true difference of 0."""
    rng = np.random.default_rng(7)
    covered = naive = 0
    for _ in range(200):
        shift = rng.integers(-1, 2, size=40)
        by_item, questions = np.repeat(shift, 5), np.repeat(np.arange(40), 5)
        low, high = bootstrap_questions(by_item, 1, questions=questions)
        covered += low <= 0 <= high
        low, high = bootstrap_questions(by_item, 1)
        naive += low <= 0 <= high
    assert covered >= 176
    assert naive < 150


def test_results_count_the_questions_of_each_set() -> None:
    outcome = {"id": [True, False, True], "rule_ood": [False, False, True]}
    results = build_results({0: dict.fromkeys(ARMS, outcome)}, questions={"id": [7, 7, 3]})
    assert results["questions"] == {"id": 2}
    loose, tight = results["arms"]["rl"]["id"], results["arms"]["rl"]["rule_ood"]
    assert loose["high"] - loose["low"] > 0
    assert (tight["low"], tight["high"]) == pytest.approx(wilson(1, 3))
