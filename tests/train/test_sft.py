from __future__ import annotations

import copy

import pytest
import torch

from sftrl_fast.config import SFTConfig
from sftrl_fast.core import Row
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.train.sft import Demonstrations, cross_entropy_step

TRAIN = "sftrl/points-text-train-v1"


def _rows(tiny: LanguageModel, count: int) -> list[Row]:
    demonstrations = Demonstrations(task_env(TRAIN, {}), tiny.chat, SFTConfig(batch=count), "seed0/sft")
    return demonstrations.batch(0)


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradient_do_not_depend_on_the_cut(tiny: LanguageModel) -> None:
    rows = _rows(tiny, 12)
    results = []
    for max_tokens in (64, 100_000):
        model = copy.deepcopy(tiny.model).double()
        step = cross_entropy_step(model, rows, max_tokens)
        results.append((step.loss, step.entropy, _gradients(model)))
    (loss, entropy, one), (other_loss, other_entropy, other) = results
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert entropy == pytest.approx(other_entropy, rel=1e-6)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-8)


def test_loss_is_transformers_own_on_the_answer_tokens(tiny: LanguageModel) -> None:
    model = copy.deepcopy(tiny.model)
    row = _rows(tiny, 1)[0]
    labels = [token if on else -100 for token, on in zip(row.ids, row.trained, strict=True)]
    expected = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
    assert cross_entropy_step(model, [row], 1000).loss == pytest.approx(float(expected), rel=1e-4)


def test_demonstrations_stay_fixed_unless_resampled(tiny: LanguageModel) -> None:
    env = task_env("sftrl/points-text-validation-v1", {})
    batch = env.num_items
    for resample in (False, True):
        rows = Demonstrations(env, tiny.chat, SFTConfig(batch=batch, resample=resample), "seed0/sft")
        first, second = ({tuple(row.ids) for row in rows.batch(epoch)} for epoch in (0, 1))
        assert (first == second) is not resample
