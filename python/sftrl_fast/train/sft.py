"""Supervised fine-tuning: cross-entropy on the answer tokens of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

from sftrl_fast.config import SFTConfig
from sftrl_fast.core import Dialogue, Message, Row, TaskEnv
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import dialogue_row, micro_batches


class Demonstrations:
    """The training items as rows. One solution an item, or with ``resample`` a new one at each visit."""

    def __init__(self, env: TaskEnv, chat: Chat, config: SFTConfig, key: str) -> None:
        self.env, self.chat, self.config, self.key = env, chat, config, key
        self._rows: dict[tuple[int, int], Row] = {}

    def batch(self, step: int) -> list[Row]:
        """The rows of optimizer step ``step``: every item once an epoch, in an order that ``key`` names."""
        visits = draw_items(self.env.num_items, self.config.batch, self.key, step)
        return [self._row(item, epoch if self.config.resample else 0) for item, epoch in visits]

    def _row(self, item: int, draw: int) -> Row:
        if (item, draw) not in self._rows:
            self._rows[item, draw] = dialogue_row(self.chat, played(self.env, item, draw))
        return self._rows[item, draw]


def played(env: TaskEnv, item: int, draw: int) -> Dialogue:
    """The dialogue in which ``env`` is given the right answers to ``item``."""
    observation, _ = env.reset(options={"index": item})
    answers = env.demonstration(item, draw)
    dialogue: Dialogue = []
    for answer in [answers] if isinstance(answers, str) else answers:
        if dialogue:
            observation = env.step(dialogue[-1].text)[0]
        dialogue += [Message("user", observation), Message("assistant", answer)]
    return dialogue


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sums over an optimizer step. ``executed_tokens`` counts a shared prompt once."""

    loss: float
    entropy: float
    executed_tokens: int


def cross_entropy_step(model: CausalLM, rows: list[Row], max_tokens: int) -> StepResult:
    """Add the gradient of the mean negative log-likelihood over all trained tokens of ``rows``.

    The mean is over the whole batch, so the result does not depend on how it is cut into micro-batches.
    """
    total = sum(sum(row.trained) for row in rows)
    loss = entropy = 0.0
    executed = 0
    for batch in micro_batches(rows, max_tokens, model.device):
        logprobs, entropies = token_logprobs(model, batch.tokens)
        part = -logprobs.sum() / total
        part.backward()
        loss += float(part.detach())
        entropy += float(entropies.detach().sum()) / total
        executed += len(batch.tokens.ids)
    return StepResult(loss, entropy, executed)


@dataclass(slots=True)
class SFTArm:
    """Everything a step reads; the warm-up is one of these too."""

    language: LanguageModel
    demonstrations: Demonstrations
    optimizer: Optimizer
    max_tokens: int
    compute: Compute

    def update(self, step: int, done: float) -> dict[str, float]:
        """Optimizer step number ``step``; ``done`` is the share of the arm that lies behind. Returns its metrics."""
        rows = self.demonstrations.batch(step)
        result = cross_entropy_step(self.language.model, rows, self.max_tokens)
        norm, lr = self.optimizer.step(done)
        self.compute.train(sum(len(row.ids) for row in rows), result.executed_tokens, samples=len(rows))
        epoch = (step + 1) * len(rows) / self.demonstrations.env.num_items
        return {"loss": result.loss, "entropy": result.entropy, "grad_norm": norm, "lr": lr, "epoch": epoch}
