from __future__ import annotations

import json

import pytest

from sftrl_fast.core import UserError
from sftrl_fast.runtime.compute import MATCH_AXES, Compute


def rl_arm() -> Compute:
    """N = 1,000. One round: 8 episodes of 50 tokens generated, then trained on twice, prefixes shared."""
    ledger = Compute(parameters=1_000)
    ledger.generate(tokens=8 * 50, executed=250, samples=8, seconds=1.5)
    for _ in range(2):
        ledger.train(tokens=8 * 50, executed=300, seconds=0.25)
    return ledger


def test_flops_follow_the_papers_formula_by_hand() -> None:
    ledger = rl_arm()
    assert ledger.samples == 8
    assert ledger.trained_tokens == 800
    assert ledger.generated_tokens == 400
    assert ledger.tokens == 1_200
    assert ledger.flops == 6 * 1_000 * 800 + 2 * 1_000 * 400 == 5_600_000
    assert ledger.flops_executed == 6 * 1_000 * 600 + 2 * 1_000 * 250 == 4_100_000
    assert ledger.seconds == 2.0


def test_sft_samples_count_every_visit() -> None:
    ledger = Compute(parameters=10)
    for _ in range(3):
        ledger.train(tokens=20, executed=32, samples=4)
    assert ledger.samples == 12
    assert ledger.flops == 6 * 10 * 60
    assert ledger.generated_tokens == 0


def test_arm_total_adds_the_warm_up() -> None:
    warmup = Compute(parameters=1_000)
    warmup.train(tokens=500, executed=500, samples=10, seconds=3.0)
    total = warmup + rl_arm()
    assert total.flops == 6 * 1_000 * 500 + 5_600_000
    assert total.samples == 18
    assert total.seconds == 5.0
    assert total.parameters == 1_000
    assert warmup.samples == 10


def test_costs_of_two_models_do_not_add() -> None:
    with pytest.raises(ValueError, match="1000 and 7 parameters"):
        rl_arm() + Compute(parameters=7)


def test_counts_stay_exact_beyond_float_precision() -> None:
    ledger = Compute(parameters=10_670_220_835)
    ledger.train(tokens=10**12 + 1, executed=0)
    assert ledger.flops == 6 * 10_670_220_835 * (10**12 + 1)


def test_ledger_survives_a_checkpoint() -> None:
    ledger = rl_arm()
    restored = Compute.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert restored == ledger
    restored.train(tokens=1, executed=1)
    assert restored != ledger


def test_checkpoint_of_another_version_is_refused() -> None:
    state = rl_arm().to_dict()
    del state["samples"]
    with pytest.raises(UserError, match="samples"):
        Compute.from_dict(state)


def test_axes_name_the_summary_columns() -> None:
    ledger = rl_arm()
    assert {name: ledger.axis(name) for name in MATCH_AXES} == {
        "flops": 5_600_000,
        "samples": 8,
        "tokens": 1_200,
        "seconds": 2.0,
    }
    assert set(MATCH_AXES) < set(ledger.summary())


@pytest.mark.parametrize("name", ["flops_executed", "steps", "parameters", ""])
def test_unknown_axis_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match=r"compute\.match.*flops, samples, tokens, seconds"):
        rl_arm().axis(name)


def test_negative_amounts_are_refused_and_leave_the_ledger_alone() -> None:
    ledger = rl_arm()
    before = ledger.to_dict()
    with pytest.raises(ValueError, match="can only grow"):
        ledger.train(tokens=5, executed=-1)
    assert ledger.to_dict() == before
    with pytest.raises(ValueError, match="parameters"):
        Compute(parameters=0)
