"""Reinforcement learning: sample, verify, train on the verdicts. One update, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from sftrl_fast.algo.advantages import ADVANTAGES, experience
from sftrl_fast.algo.demonstrations import mixed_weights, share
from sftrl_fast.algo.recipes import (
    LossTerms,
    Recipe,
    policy_loss,
    recipe,
    resolved,
    truncated_importance,
    value_loss,
)
from sftrl_fast.algo.surrogates import PolicyTokens
from sftrl_fast.config import Config
from sftrl_fast.core import Group, Row
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.models.value_head import ValueHead
from sftrl_fast.rollout.request import Engine
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.ahead import Ahead
from sftrl_fast.train.collect import rollout_metrics
from sftrl_fast.train.demonstrations import demonstrated
from sftrl_fast.train.guard import Guard, check_finite
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import TokenBatch, episode_rows, micro_batches
from sftrl_fast.train.sample import Batch, Sampler
from sftrl_fast.train.score import outputs, score

MEANS = ("entropy", "clipped", "ratio_mean", "kl", "engine_gap")
"""Columns that are means over the trained tokens of an update."""


@dataclass(slots=True)
class RLArm:
    """Everything an update reads. ``reference`` is None when ``rl.kl`` is 0, ``head`` when the recipe has no critic."""

    language: LanguageModel
    reference: CausalLM | None
    engine: Engine
    optimizer: Optimizer
    config: Config
    seed: int
    num_items: int
    compute: Compute
    guard: Guard
    head: ValueHead | None = None
    ahead: Ahead | None = None
    """With ``rl.overlap``: who draws the next batch meanwhile."""

    def __post_init__(self) -> None:
        self.config = self.config.model_copy(update={"rl": resolved(self.config.rl)})

    def update(self, step: int, done: float) -> dict[str, float]:
        """Update number ``step``; ``done`` is the share of the arm that lies behind. Returns its metrics."""
        settings = self.config.rl
        row = recipe(settings)
        batch = self._rollout(step)
        metrics = rollout_metrics(batch.groups) | {"dropped_groups": batch.dropped}
        metrics["staleness"] = batch.staleness
        groups, apart = demonstrated(batch.groups, row, self.config, self.language)
        mu = share(settings, step)
        skipped, taken = self.guard.skipped, list[dict[str, float]]()
        name = f"seed{self.seed}-rl-{step}"
        sampled = episode_rows(groups)
        judge = partial(self._judge, groups, sampled, row)
        judged = self.guard.attempt(name, sampled, self.optimizer, judge)
        rows = [*judged, *apart] if judged else []
        for epoch in range(settings.epochs or 1) if rows else ():
            order = np.random.default_rng(digest("minibatch", self.seed, step, epoch)).permutation(len(rows))
            for number, places in enumerate(np.array_split(order, settings.minibatches)):
                if self.guard.exhausted:
                    break
                part = [rows[place] for place in places]
                attempt = partial(self._optimize, part, row, done, mu)
                sums = self.guard.attempt(f"{name}-{epoch}-{number}", part, self.optimizer, attempt)
                taken += [sums] if sums else []
        mixed = {} if mu is None else {"mu": mu}
        return metrics | _update_metrics(taken) | mixed | {"skipped": self.guard.skipped - skipped}

    def _rollout(self, step: int) -> Batch:
        sampler = Sampler(self.engine, self.language, self.config, self.seed, self.num_items)
        batch = sampler.batch(step) if self.ahead is None else self.ahead.batch(sampler, step)
        self.compute += batch.spent
        return batch

    def _judge(self, groups: Sequence[Group], rows: Sequence[Row], row: Recipe) -> list[Row]:
        """``rows`` with the advantage of each turn, and with what the policy and the critic say before the update."""
        settings, values = self.config.rl, None
        if self.head is not None or settings.old_logprobs == "trainer":
            scores = score(
                self.language.model,
                self.head,
                rows,
                self.config.compute.micro_batch_tokens,
                temperature=settings.temperature,
                vision=self.language.vision,
            )
            self.compute.generate(0, scores.executed_tokens)
            if settings.old_logprobs == "trainer":
                rows = [
                    r if r.demonstrated else replace(r, old_logprobs=old)
                    for r, old in zip(rows, scores.logprobs, strict=True)
                ]
            if self.head is not None:
                values = torch.tensor([value for each in scores.values for value in each])
        longest = self.config.rollout.max_new_tokens
        known = experience(
            groups,
            values=values,
            gamma=1.0 if settings.gamma is None else settings.gamma,
            lam=1.0 if settings.lam is None else settings.lam,
            overlong=round((settings.overlong or 0.0) * longest),
            max_length=longest,
            weights=settings.reward_parts,
        )
        found = ADVANTAGES[row.advantage](known)
        advantages = found.advantage.tolist()
        targets = [] if found.target is None else found.target.tolist()
        turns = pairwise([0, *accumulate(len(r.turns) for r in rows)])
        return [
            replace(r, advantages=advantages[begin:end], targets=targets[begin:end])
            for r, (begin, end) in zip(rows, turns, strict=True)
        ]

    def _optimize(
        self, rows: Sequence[Row], row: Recipe, done: float, mu: float | None = None
    ) -> dict[str, float]:
        """One optimizer step on ``rows``; ``mu`` is what a batch of demonstrations among them weighs, if they are one.

        Raises ``NotFiniteError`` and leaves gradients if it cannot be taken.
        """
        settings = self.config.rl
        turns = torch.tensor([length for r in rows for length in r.turns])
        member = torch.repeat_interleave(torch.tensor([len(r.turns) for r in rows]))
        weights = mixed_weights(
            row.reduction,
            turns,
            member,
            torch.tensor([r.demonstrated for r in rows])[member],
            mu,
            max_length=self.config.rollout.max_new_tokens * self.config.task.verify_iter,
        ).split([len(r.turns) for r in rows])
        # Where nothing but the advantage pulls, a row of advantage 0 has no gradient: only the others go through.
        everything = settings.kl or settings.entropy or self.head is not None
        kept = [i for i, r in enumerate(rows) if everything or any(r.advantages)]
        sums = dict.fromkeys(("loss", "value_loss", "ratio_max", "engine_gap_max", "shown_nll", *MEANS), 0.0)
        executed = 0
        for batch in micro_batches(
            [rows[i] for i in kept],
            self.config.compute.micro_batch_tokens,
            self.language.device,
            self.language.vision,
        ):
            members = [kept[i] for i in batch.rows]
            weight = torch.cat([weights[i] for i in members])
            self._backward(batch, [rows[i] for i in members], weight, 1 / len(turns), row, sums)
            executed += len(batch.tokens.ids)
        shown = [r for r in rows if r.demonstrated]
        self.compute.train(sum(len(r.ids) for r in rows), executed, samples=len(shown))
        check_finite("the loss", sums["loss"])
        sums["grad_norm"], sums["lr"] = self.optimizer.step(done)
        sampled = [rows[i] for i in kept if not rows[i].demonstrated]
        sums["tokens"], sums["trained_rows"] = sum(sum(r.turns) for r in sampled), len(sampled)
        sums["shown_tokens"] = sum(sum(rows[i].turns) for i in kept) - sums["tokens"]
        return sums

    def _backward(
        self,
        batch: TokenBatch,
        rows: list[Row],
        turn_weight: Tensor,
        value_weight: float,
        row: Recipe,
        sums: dict[str, float],
    ) -> None:
        settings, device = self.config.rl, self.language.device
        # Under the distribution the tokens were drawn from: the policy that is sampled is the one that is trained.
        temperature = settings.temperature
        logp, entropy, values = outputs(self.language.model, self.head, batch, rows, temperature)

        def column(name: str) -> Tensor:
            return torch.tensor([number for r in rows for number in getattr(r, name)], device=device)

        lengths, counts = column("turns"), batch.counts.to(device)
        old, sampled = column("old_logprobs"), column("sampled_logprobs")
        tokens = PolicyTokens(
            logp,
            old,
            column("advantages").repeat_interleave(lengths),
            torch.repeat_interleave(lengths),
            torch.repeat_interleave(counts),
            torch.tensor([r.demonstrated for r in rows], device=device).repeat_interleave(counts),
        )
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = token_logprobs(self.reference, batch.tokens, temperature=temperature)
            self.compute.generate(0, len(batch.tokens.ids))
        terms = policy_loss(
            row,
            tokens,
            turn_weight.to(device).repeat_interleave(lengths),
            settings,
            ref_logp=reference,
            entropy=entropy,
            correction=truncated_importance(old, sampled, settings.tis) if settings.tis else None,
        )
        loss = terms.loss
        if values is not None:
            critic = (value_loss(values, column("targets")) * value_weight).sum()
            loss = loss + (settings.value or 0.0) * critic
            sums["value_loss"] += float(critic.detach())
        loss.backward()
        sums["loss"] += float(loss.detach())
        _measure(tokens, terms, entropy.detach(), sampled, sums)


def _measure(
    tokens: PolicyTokens, terms: LossTerms, entropy: Tensor, sampled: Tensor, sums: dict[str, float]
) -> None:
    """Add up what a log wants to know of the policy's own tokens, and how likely it finds an expert's."""
    assert tokens.demonstrated is not None
    logp, own = tokens.logp.detach(), ~tokens.demonstrated
    sums["shown_nll"] -= float(logp[~own].sum())
    if not own.any():
        return
    gap, ratio = (logp - sampled)[own].abs(), terms.ratio[own]
    sums["entropy"] += float(entropy[own].sum())
    sums["clipped"] += float(terms.clipped[own].sum())
    sums["ratio_max"] = max(sums["ratio_max"], float(ratio.max()))
    sums["ratio_mean"] += float(ratio.sum())
    sums["engine_gap"] += float(gap.sum())
    sums["engine_gap_max"] = max(sums["engine_gap_max"], float(gap.max()))
    sums["kl"] += 0.0 if terms.kl is None else float(terms.kl[own].sum())


def _update_metrics(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """One row for all optimizer steps of an update. What nothing was measured of is NaN, not 0."""
    trained = [sums for sums in steps if sums["tokens"]]
    tokens = sum(sums["tokens"] for sums in trained)
    metrics = {key: sum(sums[key] for sums in trained) / tokens if tokens else math.nan for key in MEANS}
    # Before the first optimizer step the difference is the engine's and the trainer's alone.
    first = trained[0] if trained else dict.fromkeys(("engine_gap", "engine_gap_max"), math.nan)
    metrics["engine_gap"] = first["engine_gap"] / first.get("tokens", 1)
    metrics["engine_gap_max"] = first["engine_gap_max"]
    metrics["ratio_max"] = max((sums["ratio_max"] for sums in trained), default=math.nan)
    if shown := sum(sums["shown_tokens"] for sums in steps):
        metrics["demonstration_nll"] = sum(sums["shown_nll"] for sums in steps) / shown
    for key in ("loss", "value_loss", "grad_norm", "lr", "trained_rows"):
        metrics[key] = sum(sums[key] for sums in steps) / len(steps) if steps else math.nan
    return metrics
