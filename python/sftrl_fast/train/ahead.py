"""The next batch of episodes while this one is trained on: one update behind, at the price of a copy of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from sftrl_fast.config import Config
from sftrl_fast.evaluate import make_engine
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.train.sample import Batch, Sampler


class Ahead:
    """Draws batch k + 1 in a thread, with the weights that update k begins with.

    What it draws is a function of those weights and the step, so a checkpoint needs nothing but ``tensors()``: given
    to a new one as ``behind``, they draw the same batch again.
    """

    def __init__(
        self, language: LanguageModel, config: Config, behind: Mapping[str, Tensor] | None = None
    ) -> None:
        model = copy.deepcopy(language.model).eval().requires_grad_(False)
        self._own = replace(language, model=model)
        self._behind = bool(behind)
        if behind:
            self._take(behind)
        self._engine = make_engine(self._own, config)
        self._updates = config.rl.updates
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: Future[Batch] | None = None

    def batch(self, sampler: Sampler, step: int) -> Batch:
        """The batch of update ``step``, and the next one is begun with the weights of ``sampler`` as they are now.

        Raises what drawing it raised.
        """
        present = {name: p.detach() for name, p in sampler.language.model.named_parameters()}
        if not self._behind:
            self._take(present)
        own = replace(sampler, engine=self._engine, language=self._own)
        found = own.batch(step) if self._next is None else self._next.result()
        found = replace(found, staleness=int(self._behind))
        self._take(present)
        self._behind = True
        self._next = self._pool.submit(own.batch, step + 1) if step + 1 < self._updates else None
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The weights that draw the next batch, by parameter name."""
        return {name: parameter.detach() for name, parameter in self._own.model.named_parameters()}

    def close(self) -> None:
        """Wait for the batch under way, if there is one; it is lost."""
        self._pool.shutdown()

    @torch.no_grad()
    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._own.model.named_parameters():
            parameter.copy_(tensors[name])
