"""Supervised fine-tuning on the answer tokens of demonstrations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from sftrl_fast.algo.sft_losses import PROXIMAL, SFT_LOSSES
from sftrl_fast.config import SFTConfig
from sftrl_fast.core import Dialogue, Message, Observation, Row, TaskEnv
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.models.vision import Vision
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.guard import Guard, check_finite
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import dialogue_row, micro_batches
from sftrl_fast.train.score import score

METRICS = ("loss", "nll", "entropy", "grad_norm", "lr")
"""Columns of one optimizer step."""


class Demonstrations:
    """The training items as rows. One solution an item, or with ``resample`` a new one at each visit."""

    def __init__(self, env: TaskEnv, chat: Chat, config: SFTConfig, key: str) -> None:
        self.env, self.chat, self.config, self.key = env, chat, config, key
        self.facts: dict[str, float] = {}
        """What a log wants to know of the last batch."""
        self._rows: dict[tuple[int, int], Row] = {}

    def batch(self, step: int) -> list[Row]:
        """The rows of optimizer step ``step``: every item once an epoch, in an order that ``key`` names."""
        visits = draw_items(self.env.num_items, self.config.batch, self.key, step)
        return [self._row(item, epoch if self.config.resample else 0) for item, epoch in visits]

    def _row(self, item: int, draw: int) -> Row:
        if (item, draw) in self._rows:
            return self._rows[item, draw]
        row = dialogue_row(self.chat, played(self.env, item, draw))
        # Pictures are drawn anew at each visit: of thousands of items they would fill the memory.
        if not row.images:
            self._rows[item, draw] = row
        return row


def played(env: TaskEnv, item: int, draw: int) -> Dialogue:
    """The dialogue in which ``env`` is given the right answers to ``item``."""
    shown = Observation.of(env.reset(options={"index": item})[0])
    answers = env.demonstration(item, draw)
    dialogue: Dialogue = []
    last = None
    for answer in [answers] if isinstance(answers, str) else answers:
        if dialogue:
            shown = Observation.of(env.step(dialogue[-1].text)[0])
        known = shown.image is None or (last is not None and np.array_equal(last, shown.image))
        question = Message("user", shown.text, image=None if known else shown.image)
        dialogue += [question, Message("assistant", answer)]
        last = shown.image
    return dialogue


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sums over an optimizer step. ``executed_tokens`` counts a shared prompt once."""

    loss: float
    nll: float
    """Mean negative log-likelihood, whatever the loss."""
    entropy: float
    executed_tokens: int


def cross_entropy_step(
    model: CausalLM, rows: list[Row], max_tokens: int, vision: Vision | None = None
) -> StepResult:
    """Add the gradient of the mean negative log-likelihood over all trained tokens of ``rows``.

    ``vision`` is needed for rows with pictures. The mean is over the whole batch, so the result does not depend on
    how it is cut into micro-batches.
    """
    return loss_step(model, rows, max_tokens, "cross_entropy", vision=vision)


def loss_step(
    model: CausalLM,
    rows: list[Row],
    max_tokens: int,
    loss: str,
    clip: float = 0.0,
    vision: Vision | None = None,
) -> StepResult:
    """Add the gradient of the mean over all trained tokens of ``rows`` of a row of ``SFT_LOSSES``.

    ``clip`` is read by ``psft`` only, and so are the rows' ``old_logprobs``. Raises ``NotFiniteError`` for a loss that
    is NaN or infinite.
    """
    total = sum(sum(row.trained) for row in rows)
    sums = dict.fromkeys(("loss", "nll", "entropy"), 0.0)
    executed = 0
    for batch in micro_batches(rows, max_tokens, model.device, vision):
        logp, entropy = token_logprobs(model, batch.tokens)
        old = None
        if loss in PROXIMAL:
            numbers = [number for index in batch.rows for number in rows[index].old_logprobs]
            old = torch.tensor(numbers, device=logp.device)
        part = SFT_LOSSES[loss](logp, old, clip).sum() / total
        part.backward()
        sums["loss"] += float(part.detach())
        sums["nll"] -= float(logp.detach().sum()) / total
        sums["entropy"] += float(entropy.detach().sum()) / total
        executed += len(batch.tokens.ids)
    check_finite("the loss", sums["loss"])
    return StepResult(sums["loss"], sums["nll"], sums["entropy"], executed)


@dataclass(slots=True)
class SFTArm:
    """Everything a step reads; the warm-up is one of these too."""

    language: LanguageModel
    demonstrations: Demonstrations
    optimizer: Optimizer
    max_tokens: int
    compute: Compute
    guard: Guard

    def update(self, step: int, done: float) -> dict[str, float]:
        """Batch number ``step`` and ``sft.passes`` optimizer steps on it; returns the metrics of the last.

        ``done`` is the share of the arm that lies behind.
        """
        settings = self.demonstrations.config
        rows = self.demonstrations.batch(step)
        skipped, metrics = self.guard.skipped, dict.fromkeys(METRICS, math.nan)
        name = f"{self.demonstrations.key.replace('/', '-')}-{step}"
        if settings.loss in PROXIMAL:
            scored = self.guard.attempt(name, rows, self.optimizer, partial(self._score, rows))
            rows = scored or []
        for number in range(settings.passes if rows else 0):
            if self.guard.exhausted:
                break
            take = partial(self._optimize, rows, done)
            metrics = self.guard.attempt(f"{name}-{number}", rows, self.optimizer, take) or metrics
        epoch = (step + 1) * settings.batch / self.demonstrations.env.num_items
        return metrics | self.demonstrations.facts | {"epoch": epoch, "skipped": self.guard.skipped - skipped}

    def _score(self, rows: list[Row]) -> list[Row]:
        scores = score(self.language.model, None, rows, self.max_tokens, vision=self.language.vision)
        self.compute.generate(0, scores.executed_tokens)
        return [replace(row, old_logprobs=old) for row, old in zip(rows, scores.logprobs, strict=True)]

    def _optimize(self, rows: list[Row], done: float) -> dict[str, float]:
        settings = self.demonstrations.config
        language = self.language
        result = loss_step(
            language.model, rows, self.max_tokens, settings.loss, settings.clip, language.vision
        )
        norm, lr = self.optimizer.step(done)
        self.compute.train(sum(len(row.ids) for row in rows), result.executed_tokens, samples=len(rows))
        return dict(zip(METRICS, (result.loss, result.nll, result.entropy, norm, lr), strict=True))
