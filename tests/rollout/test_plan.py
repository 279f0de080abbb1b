"""How the tokens that wait are cut into passes."""

from __future__ import annotations

from typing import Any

import pytest

from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams


@pytest.mark.parametrize(("lengths", "passes"), [([40, 40, 10], 1), ([40, 40, 11], 2)])
def test_a_few_tokens_beyond_the_budget_are_no_pass_of_their_own(
    llama: Any, lengths: list[int], passes: int
) -> None:
    engine = NativeEngine(llama, frozenset(), max_sequences=8, cache_tokens=1024, step_tokens=80)
    requests = [
        Request([item + 1] * length, RequestKey(0, 0, item, 0, 0)) for item, length in enumerate(lengths)
    ]
    engine.generate(requests, SamplingParams(1))
    assert engine.counters.steps == passes
