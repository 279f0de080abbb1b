from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from sftrl_fast.config import OptimizerConfig
from sftrl_fast.core import UserError
from sftrl_fast.train.optimizer import Optimizer, check, rate


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
        model(x.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step(step / 10)


KINDS = pytest.mark.parametrize(
    ("settings", "width", "dtype"),
    [
        ({}, 3, torch.float32),
        ({"master_weights": True}, 3, torch.bfloat16),
        ({"optimizer": "adamw_8bit"}, 5000, torch.float32),
        ({"optimizer": "adamw_8bit", "master_weights": True}, 5000, torch.bfloat16),
    ],
    ids=["adamw", "masters", "8bit", "8bit with masters"],
)
"""bitsandbytes keeps tensors below 4,096 numbers in float32; the wide ones are in eight bits."""


@KINDS
def test_state_by_name_goes_on_bit_for_bit(
    settings: dict[str, object], width: int, dtype: torch.dtype
) -> None:
    config = OptimizerConfig.model_validate({"lr": 0.05, "warmup_steps": 3, "schedule": "linear", **settings})
    torch.manual_seed(0)
    whole = nn.Linear(3, width, dtype=dtype)
    cut = nn.Linear(3, width, dtype=dtype)
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


def _steps(config: OptimizerConfig, number: int) -> float:
    """Where a bfloat16 weight of 1 comes to by ``number`` steps of AdamW, each the rate itself."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = Optimizer(model, config)
    for _ in range(number):
        model.weight.sum().backward()
        optimizer.step(0.0)
        assert model.weight.grad is None
    return float(model.weight.detach())


def test_steps_that_bfloat16_cannot_hold_add_up_in_master_weights() -> None:
    # Below 1, neighbours in bfloat16 are 2^-8 apart: a step of a thousandth is rounded away.
    assert _steps(OptimizerConfig(lr=1e-3), 100) == 1.0
    assert _steps(OptimizerConfig(lr=1e-3, master_weights=True), 100) == pytest.approx(0.9, abs=2**-8)


def test_a_float32_model_has_no_second_copy() -> None:
    optimizer = Optimizer(nn.Linear(2, 2), OptimizerConfig(master_weights=True))
    assert optimizer.tensors() == {}


def test_moments_in_eight_bits_take_a_quarter() -> None:
    sizes = {}
    for name in ("adamw", "adamw_8bit"):
        model = nn.Linear(256, 256)
        optimizer = Optimizer(model, OptimizerConfig(optimizer=name))
        model(torch.ones(1, 256)).square().mean().backward()
        optimizer.step(0.0)
        weight = {k: t for k, t in optimizer.tensors().items() if k.startswith("weight/")}
        sizes[name] = sum(t.numel() * t.element_size() for t in weight.values())
        assert optimizer.steps == 1
    assert sizes["adamw"] == 2 * 4 * 256 * 256 + 4
    # A byte a number, a float32 scale for every 256, and two tables of 256 numbers that quantise.
    assert sizes["adamw_8bit"] <= 2 * (256 * 256 * (1 + 4 / 256) + 1024) + 8


def test_a_part_has_its_own_rate() -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("vision", "projector", "language")})
    parts = {name: [module] for name, module in model.items()}
    before = {name: float(module.weight.detach()) for name, module in model.items()}
    config = OptimizerConfig(lr=0.1, vision_lr=0.01, projector_lr=0.05, schedule="linear", max_grad_norm=9.0)
    optimizer = Optimizer(model, config, parts=parts, head=nn.Linear(1, 1), head_lr=0.01)
    sum(module.weight.sum() for module in model.values()).backward()
    assert optimizer.step(0.5)[1] == pytest.approx(0.05)
    moved = {name: before[name] - float(module.weight.detach()) for name, module in model.items()}
    # AdamW's first step is the rate itself, here half of its peak.
    assert moved == pytest.approx({"vision": 0.005, "projector": 0.025, "language": 0.05}, abs=1e-6)


def test_a_rate_for_a_part_the_model_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"vision_lr=0\.5: a model of text"):
        check(nn.Linear(1, 1), OptimizerConfig(vision_lr=0.5), {})


def test_an_optimizer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"optimizer='adamw_8bit' needs bitsandbytes: pip install"):
        check(nn.Linear(1, 1), OptimizerConfig(optimizer="adamw_8bit"), {})
