"""Our rows against TRL's losses on the same tensors, as ``golden/make_trl_losses.py`` recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftrl_fast.algo.recipes import policy_loss, recipe, resolved, truncated_importance
from sftrl_fast.algo.reductions import token_weights
from sftrl_fast.algo.surrogates import PolicyTokens
from sftrl_fast.config import RLConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text())
OURS: dict[str, dict[str, Any]] = {
    "grpo": {"kl": 0.1},
    "dr_grpo": {},
    "dapo": {},
    "dapo_entropy": {"recipe": "dapo", "entropy": 0.05},
    "dapo_tis": {"recipe": "dapo", "old_logprobs": "trainer", "tis": 1.1},
    "gspo": {},
    "cispo": {},
    "ppo": {},
    "rloo_fresh": {"recipe": "rloo"},
}


@pytest.mark.parametrize("name", list(GOLDEN["rows"]))
def test_the_loss_and_its_gradient_are_trl_s(name: str) -> None:
    given = {key: torch.tensor(numbers, dtype=torch.float64) for key, numbers in GOLDEN["given"].items()}
    mask = given["mask"].bool()
    lengths = mask.sum(1)
    member = torch.arange(len(lengths))
    settings = resolved(RLConfig(**{"recipe": name, **OURS[name]}))
    row = recipe(settings)
    logp = given["logps"][mask].requires_grad_()
    old = given["logps" if name == "rloo_fresh" else "old"][mask]
    each = member.repeat_interleave(lengths)
    tokens = PolicyTokens(logp, old, given["advantages"][each], each, each)
    weights = token_weights(row.reduction, lengths, member, max_length=GOLDEN["max_length"])
    correction = truncated_importance(old, given["sampled"][mask], settings.tis) if settings.tis else None
    terms = policy_loss(
        row,
        tokens,
        weights.double()[each],
        settings,
        ref_logp=given["reference"][mask],
        entropy=given["entropies"][mask],
        correction=correction,
    )
    terms.loss.backward()
    theirs = GOLDEN["rows"][name]
    assert logp.grad is not None
    expected = torch.tensor(theirs["gradient"], dtype=torch.float64)[mask]
    # Weights are float32; everything else is float64 on both sides.
    torch.testing.assert_close(logp.grad, expected, rtol=3e-7, atol=1e-12)
    if name != "rloo_fresh":
        assert terms.loss.item() == pytest.approx(theirs["loss"], rel=3e-7, abs=3e-8)


def test_every_recorded_row_is_compared() -> None:
    assert set(OURS) == set(GOLDEN["rows"])
    assert GOLDEN["trl"] == "1.16.0"
