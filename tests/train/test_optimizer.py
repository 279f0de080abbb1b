from __future__ import annotations

import pytest
import torch
from torch import nn

from sftrl_fast.config import OptimizerConfig
from sftrl_fast.train.optimizer import Optimizer, rate


def test_rate_rises_linearly_and_then_follows_the_schedule() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine")
    assert [rate(config, step, 0.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(config, 10, 0.5) == pytest.approx(0.5)
    assert rate(config, 99, 1.0) == pytest.approx(0.0)
    assert rate(config.model_copy(update={"schedule": "linear"}), 9, 0.25) == pytest.approx(0.75)
    assert rate(config.model_copy(update={"schedule": "constant"}), 9, 0.9) == 1.0


def _train(optimizer: Optimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        x = torch.linspace(-1, 1, 12).reshape(4, 3) * (step + 1)
        model(x).square().mean().backward()
        optimizer.step(step / 10)


def test_state_by_name_goes_on_bit_for_bit() -> None:
    config = OptimizerConfig(lr=0.05, warmup_steps=3, schedule="linear")
    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    cut = nn.Linear(3, 2)
    cut.load_state_dict(whole.state_dict())
    first = Optimizer(whole, config)
    _train(first, whole, range(8))
    before = Optimizer(cut, config)
    _train(before, cut, range(3))
    after = Optimizer(cut, config)
    after.load_tensors({name: tensor.clone() for name, tensor in before.tensors().items()})
    assert after.steps == 3
    _train(after, cut, range(3, 8))
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_reports_the_norm_before_clipping_and_clears_gradients() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, OptimizerConfig(lr=0.1, max_grad_norm=0.5))
    (model.weight * 30).sum().backward()
    norm, lr = optimizer.step(0.0)
    assert norm == pytest.approx(30)
    assert lr == 0.1
    assert model.weight.grad is None


def test_a_head_is_trained_at_its_own_rate_and_kept_by_name() -> None:
    model, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    config = OptimizerConfig(lr=0.1, schedule="linear", max_grad_norm=100.0)
    optimizer = Optimizer(model, config, head=head, head_lr=0.5)
    before = float(model.weight.detach()), float(head.weight.detach())
    (model.weight * 3 + head.weight * 4).sum().backward()
    norm, lr = optimizer.step(0.5)
    assert (norm, lr) == (pytest.approx(5), pytest.approx(0.05))
    # AdamW's first step is the rate itself.
    assert float(model.weight.detach()) == pytest.approx(before[0] - 0.05, abs=1e-6)
    assert float(head.weight.detach()) == pytest.approx(before[1] - 0.25, abs=1e-6)
    assert set(optimizer.tensors()) == {
        f"{name}/{key}"
        for name in ("weight", "value_head.weight")
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_eps_bounds_the_step_of_a_vanishing_gradient() -> None:
    steps = []
    for eps in (1e-8, 1e-2):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = Optimizer(model, OptimizerConfig(lr=0.1, eps=eps))
        (model.weight * 1e-4).sum().backward()
        optimizer.step(0.0)
        steps.append(abs(float(model.weight.detach())))
    assert steps[0] == pytest.approx(0.1, rel=1e-3)
    assert steps[1] == pytest.approx(0.1 * 1e-4 / (1e-4 + 1e-2), rel=1e-3)
