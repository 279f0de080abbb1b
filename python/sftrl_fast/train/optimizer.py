"""AdamW with a learning-rate schedule that is a pure function of the step, and its state by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sftrl_fast.config import OptimizerConfig
from sftrl_fast.core import NotFiniteError


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
    """One arm's optimizer. Tied parameters are updated once.

    ``head`` is trained beside the model, at ``head_lr`` as its peak rate or, without one, at the model's; its gradient
    counts in the norm.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        *,
        head: nn.Module | None = None,
        head_lr: float | None = None,
    ) -> None:
        self.config = config
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        beside = {} if head is None else {f"value_head.{name}": p for name, p in head.named_parameters()}
        self.parameters = own | beside
        self._share = [1.0, (head_lr or config.lr) / config.lr]
        groups = [{"params": list(part.values())} for part in (own, beside) if part]
        self.adamw = torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def steps(self) -> int:
        """Updates taken so far."""
        states = iter(self.adamw.state.values())
        return max((int(state["step"]) for state in states), default=0)

    def step(self, done: float) -> tuple[float, float]:
        """Clip, update, clear the gradients. Returns the gradient's norm before clipping and the model's rate.

        Raises :class:`NotFiniteError` for a norm that is NaN or infinite; weights and moments are as before then.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient is {norm}")
        lr = rate(self.config, self.steps, done)
        for group, share in zip(self.adamw.param_groups, self._share, strict=False):
            group["lr"] = lr * share
        self.adamw.step()
        self.discard()
        return norm, lr

    def discard(self) -> None:
        """Forget the gradients gathered so far."""
        self.adamw.zero_grad(set_to_none=True)

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
