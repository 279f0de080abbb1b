"""Whether a model's weights are still those that something was computed from."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sftrl_fast.ops.fingerprint import fingerprints

_optimizer_steps = 0
_counter: Callable[[torch.Tensor], int] = attrgetter("_version")


def _count_step(*_arguments: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class WeightsWatch:
    """Notices changes of a model's parameters; ``version`` counts them, from 1.

    No counter of torch's sees every change: a tensor's own (``_version``) misses fused optimizers and writes through
    ``.data``. So :meth:`changed` compares those counters, the places of the tensors and the number of optimizer steps
    taken in this process, which costs microseconds, and with ``thorough`` also a fingerprint of the values, which
    reads every weight once. It keeps the parameters alive and not the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.version = 1
        self._model = ref(model)
        self._parameters = list(model.parameters())
        self._signs = self._read()
        self._fingerprints = self._values()

    def changed(self, *, thorough: bool) -> bool:
        """Whether the weights differ from those at the last call that said so; then ``version`` has risen.

        ``thorough`` also finds parameters that were exchanged for others.
        """
        if thorough and (model := self._model()) is not None:
            self._parameters = list(model.parameters())
        signs = self._read()
        if signs == self._signs and not thorough:
            return False
        fingerprints = self._values()
        same = fingerprints == self._fingerprints and signs[0] == self._signs[0]
        self._signs, self._fingerprints = signs, fingerprints
        self.version += not same
        return not same

    def _read(self) -> tuple[list[int], list[int], int]:
        places = list(map(torch.Tensor.data_ptr, self._parameters))
        return places, list(map(_counter, self._parameters)), _optimizer_steps

    def _values(self) -> list[int]:
        return fingerprints(self._parameters)
