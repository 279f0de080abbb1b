"""AdamW with a learning-rate schedule that is a pure function of the step, and its state by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sftrl_fast.config import OptimizerConfig


def rate(config: OptimizerConfig, step: int, done: float) -> float:
    """The learning rate of optimizer step ``step`` (from 0), when the share ``done`` of the training lies behind."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - min(1.0, done))
        case "cosine":
            return config.lr * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))


class Optimizer:
    """One arm's optimizer. Tied parameters are updated once."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.adamw = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def steps(self) -> int:
        """Updates taken so far."""
        states = iter(self.adamw.state.values())
        return max((int(state["step"]) for state in states), default=0)

    def step(self, done: float) -> tuple[float, float]:
        """Clip, update, clear the gradients. Returns the gradient's norm before clipping and the rate used."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        lr = rate(self.config, self.steps, done)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(norm), lr

    def tensors(self) -> dict[str, Tensor]:
        """The moments and step counts, keyed ``<parameter>/<moment>``."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adamw.state.get(parameter, {}).items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            state = {
                key.removeprefix(f"{name}/"): value.to(parameter.device, copy=True)
                for key, value in tensors.items()
                if key.rpartition("/")[0] == name
            }
            if state:
                self.adamw.state[parameter] = state
