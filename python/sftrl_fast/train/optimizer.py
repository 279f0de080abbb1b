"""AdamW with a learning-rate schedule that is a pure function of the step, and its state by parameter name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sftrl_fast.config import OptimizerConfig
from sftrl_fast.core import NotFiniteError, UserError

Groups = list[dict[str, Any]]


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


def _adamw(groups: Groups, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **settings)


def _adamw_8bit(groups: Groups, **settings: Any) -> torch.optim.Optimizer:
    """Moments in eight bits, in blocks of 256 numbers with a scale each (Dettmers et al., arXiv 2110.02861)."""
    try:
        library: Any = importlib.import_module("bitsandbytes.optim")
    except ImportError:
        raise UserError(
            "optimizer='adamw_8bit' needs bitsandbytes: pip install 'sftrl-fast[8bit]', or take 'adamw'"
        ) from None
    made: torch.optim.Optimizer = library.AdamW8bit(groups, **settings)
    return made


ADAMW: Mapping[str, Callable[..., torch.optim.Optimizer]] = MappingProxyType(
    {"adamw": _adamw, "adamw_8bit": _adamw_8bit}
)
"""Name in ``optimizer`` of a configuration -> what takes the steps."""


def check(model: nn.Module, config: OptimizerConfig, parts: Mapping[str, Sequence[nn.Module]]) -> None:
    """``UserError`` for rates of parts that the model does not have, and for an optimizer whose library is missing."""
    _rates(model, config, parts)
    ADAMW[config.optimizer]([{"params": [torch.zeros(1)]}])


class Optimizer:
    """One arm's optimizer. Tied parameters are updated once.

    ``parts`` are the modules that ``vision_lr`` and ``projector_lr`` mean. ``head`` is trained beside the model, at
    ``head_lr`` as its peak rate or, without one, at the model's; its gradient counts in the norm.

    With ``master_weights`` steps are taken on float32 copies of parameters of other types, which are rounded to them
    after each: a change below half a unit in the last place adds up instead of being lost (Micikevicius et al., arXiv
    1710.03740, section 3.1).

    Raises :class:`UserError` as :func:`check` does.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        *,
        parts: Mapping[str, Sequence[nn.Module]] | None = None,
        head: nn.Module | None = None,
        head_lr: float | None = None,
    ) -> None:
        self.config = config
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        beside = {} if head is None else {f"value_head.{name}": p for name, p in head.named_parameters()}
        self.parameters = own | beside
        self._masters = {
            name: p.detach().float()
            for name, p in self.parameters.items()
            if config.master_weights and p.dtype != torch.float32
        }
        rates = dict.fromkeys(own, config.lr) | _rates(model, config, parts or {})
        rates |= dict.fromkeys(beside, head_lr or config.lr)
        self._shares = [each / config.lr for each in dict.fromkeys(rates[name] for name in self.parameters)]
        groups: Groups = [{"params": []} for _ in self._shares]
        for name in self.parameters:
            groups[self._shares.index(rates[name] / config.lr)]["params"].append(self._stepped(name))
        self._adamw = ADAMW[config.optimizer](
            groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )

    @property
    def steps(self) -> int:
        """Updates taken so far."""
        return max((int(state["step"]) for state in self._adamw.state.values()), default=0)

    def step(self, done: float) -> tuple[float, float]:
        """Clip, update, clear the gradients. Returns the gradient's norm before clipping and the model's rate.

        Raises :class:`NotFiniteError` for a norm that is NaN or infinite; weights and moments are as before then.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient is {norm}")
        lr = rate(self.config, self.steps, done)
        for group, share in zip(self._adamw.param_groups, self._shares, strict=True):
            group["lr"] = lr * share
        for name, master in self._masters.items():
            grad = self.parameters[name].grad
            master.grad = None if grad is None else grad.float()
            self.parameters[name].grad = None
        self._adamw.step()
        with torch.no_grad():
            for name, master in self._masters.items():
                self.parameters[name].copy_(master)
        self.discard()
        return norm, lr

    def discard(self) -> None:
        """Forget the gradients gathered so far."""
        self._adamw.zero_grad(set_to_none=True)
        for name in self._masters:
            self.parameters[name].grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments, step counts and master weights, keyed ``<parameter>/<moment>``."""
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name in self.parameters
            for key, value in self._adamw.state.get(self._stepped(name), {}).items()
        }
        return moments | {f"{name}/{MASTER}": master for name, master in self._masters.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave, of an optimizer with the same settings."""
        for name, parameter in self.parameters.items():
            state: dict[str, Any] = {
                key.removeprefix(f"{name}/"): value.to(parameter.device, copy=True)
                for key, value in tensors.items()
                if key.rpartition("/")[0] == name
            }
            if name in self._masters:
                self._masters[name].copy_(state.pop(MASTER))
            if state:
                if self.config.optimizer == "adamw_8bit":
                    state["step"] = int(state["step"])  # bitsandbytes counts in Python's numbers
                self._adamw.state[self._stepped(name)] = state

    def _stepped(self, name: str) -> Tensor:
        """The tensor that the update of a parameter is made on."""
        return self._masters.get(name, self.parameters[name])


MASTER = "master"
"""What :meth:`Optimizer.tensors` calls a float32 copy."""


def _rates(
    model: nn.Module, config: OptimizerConfig, parts: Mapping[str, Sequence[nn.Module]]
) -> dict[str, float]:
    """Peak rate of each parameter whose part has one of its own."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates: dict[str, float] = {}
    for part, key in (("vision", "vision_lr"), ("projector", "projector_lr")):
        if (lr := getattr(config, key)) is None:
            continue
        if part not in parts:
            raise UserError(f"{key}={lr}: a model of text has no such part; leave it out")
        own = (parameter for module in parts[part] for parameter in module.parameters())
        rates |= {names[id(parameter)]: lr for parameter in own if id(parameter) in names}
    return rates
