"""Reinforcement learning: sample, verify, train on the verdicts. One update, top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sftrl_fast.algo.advantages import episode_advantages
from sftrl_fast.algo.recipes import Recipe, policy_loss, recipe
from sftrl_fast.algo.reductions import token_weights
from sftrl_fast.config import Config
from sftrl_fast.core import Group, Row
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import Engine, SamplingParams
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import TokenBatch, episode_rows, micro_batches


@dataclass(slots=True)
class RLArm:
    """Everything an update reads. ``reference`` is None when ``rl.kl`` is 0."""

    language: LanguageModel
    reference: CausalLM | None
    engine: Engine
    optimizer: Optimizer
    config: Config
    seed: int
    num_items: int
    compute: Compute

    def update(self, step: int, done: float) -> dict[str, float]:
        """Update number ``step``; ``done`` is the share of the arm that lies behind. Returns its metrics."""
        settings = self.config.rl
        row = recipe(settings.recipe)
        groups = self._rollout(step)
        advantages = episode_advantages(groups, row.advantage)
        rows = episode_rows(groups, [value for group in advantages for value in group])
        metrics = _rollout_metrics(groups)
        steps = []
        for epoch in range(settings.epochs):
            order = np.random.default_rng(digest("minibatch", self.seed, step, epoch)).permutation(len(rows))
            for part in np.array_split(order, settings.minibatches):
                steps.append(self._optimize([rows[i] for i in part], row))
                steps[-1]["grad_norm"], metrics["lr"] = self.optimizer.step(done)
        # Before the first optimizer step the difference is the engine's and the trainer's alone.
        metrics["engine_gap"], metrics["engine_gap_max"] = (
            steps[0]["logprob_gap"],
            steps[0]["logprob_gap_max"],
        )
        metrics["ratio_max"] = max(optimized["ratio_max"] for optimized in steps)
        for key in ("loss", "entropy", "clipped", "kl", "ratio_mean", "grad_norm", "trained_rows"):
            metrics[key] = float(np.mean([optimized[key] for optimized in steps]))
        return metrics

    def _rollout(self, step: int) -> list[Group]:
        settings = self.config.rl
        items = [
            item for item, _ in draw_items(self.num_items, settings.prompts, f"seed{self.seed}/rl", step)
        ]
        before = self.engine.counters.executed_tokens
        groups = run_episodes(
            self.engine,
            self.language.chat,
            self.config.task.train,
            items,
            group_size=settings.group,
            params=SamplingParams(self.config.rollout.max_new_tokens, settings.temperature),
            seed=self.seed,
            step=step,
            env_kwargs=self.config.task.env_kwargs,
            max_context=self.language.max_context,
        )
        episodes = [episode for group in groups for episode in group.episodes]
        self.compute.generate(
            sum(episode.num_tokens for episode in episodes),
            self.engine.counters.executed_tokens - before,
            samples=len(episodes),
        )
        return groups

    def _optimize(self, rows: Sequence[Row], row: Recipe) -> dict[str, float]:
        """Add the gradient of the loss over ``rows``; one optimizer step's worth."""
        settings = self.config.rl
        lengths = torch.tensor([sum(r.trained) for r in rows])
        weights = token_weights(
            row.reduction,
            lengths,
            max_length=self.config.rollout.max_new_tokens * self.config.task.verify_iter,
        )
        # Without a KL term a row of advantage 0 has no gradient, so only the others go through the model.
        kept = [i for i, r in enumerate(rows) if r.advantage != 0 or settings.kl]
        means = ("entropy", "clipped", "ratio_mean", "logprob_gap", "kl")
        sums = dict.fromkeys(("loss", "ratio_max", "logprob_gap_max", *means), 0.0)
        executed = 0
        for batch in micro_batches(
            [rows[i] for i in kept], self.config.compute.micro_batch_tokens, self.language.device
        ):
            members = [kept[i] for i in batch.rows]
            self._backward(batch, [rows[i] for i in members], weights[members], row, sums)
            executed += batch.ids.numel()
        self.compute.train(sum(len(r.ids) for r in rows), executed)
        tokens = max(1, int(lengths[kept].sum()))
        return sums | {key: sums[key] / tokens for key in means} | {"trained_rows": len(kept)}

    def _backward(
        self, batch: TokenBatch, rows: list[Row], weights: Tensor, row: Recipe, sums: dict[str, float]
    ) -> None:
        settings = self.config.rl
        # Under the distribution the tokens were drawn from: the policy that is sampled is the one that is trained.
        temperature = settings.temperature
        logp, entropy = token_logprobs(self.language.model, batch.ids, batch.trained, temperature=temperature)
        counts = batch.trained.sum(dim=1)
        old = torch.tensor([p for r in rows for p in r.old_logprobs or ()], device=logp.device)
        advantage = torch.tensor([r.advantage for r in rows], device=logp.device).repeat_interleave(counts)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = token_logprobs(
                    self.reference, batch.ids, batch.trained, temperature=temperature
                )
            self.compute.generate(0, batch.ids.numel())
        terms = policy_loss(
            row,
            logp,
            old,
            reference,
            advantage,
            weights.to(logp.device).repeat_interleave(counts),
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_coef=settings.kl,
        )
        terms.loss.backward()
        sums["loss"] += float(terms.loss.detach())
        sums["entropy"] += float(entropy.detach().sum())
        sums["clipped"] += float(terms.clipped.sum())
        sums["ratio_max"] = max(sums["ratio_max"], float(terms.ratio.max()))
        sums["ratio_mean"] += float(terms.ratio.sum())
        gap = (logp.detach() - old).abs()
        sums["logprob_gap"] += float(gap.sum())
        sums["logprob_gap_max"] = max(sums["logprob_gap_max"], float(gap.max()))
        sums["kl"] += 0.0 if terms.kl is None else float(terms.kl.sum())


def _rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    episodes = [episode for group in groups for episode in group.episodes]
    turns = [turn for episode in episodes for turn in episode.turns]
    mixed = sum(len({episode.reward for episode in group.episodes}) > 1 for group in groups)
    return {
        "reward": float(np.mean([episode.reward for episode in episodes])),
        "success": float(np.mean([episode.success for episode in episodes])),
        "first_try": float(np.mean([episode.turns[0].verdict.success for episode in episodes])),
        "attempts": len(turns) / len(episodes),
        "answer_tokens": float(np.mean([len(turn.answer_ids) for turn in turns])),
        "truncated": float(np.mean([not turn.stopped for turn in turns])),
        "mixed_groups": mixed / len(groups),
    }
