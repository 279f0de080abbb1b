"""Episodes of an engine for training, and their place in the compute ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftrl_fast.algo.rewards import weighed
from sftrl_fast.config import Config
from sftrl_fast.core import Group
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import Engine, SamplingParams
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.collect import collect


def sample_groups(
    engine: Engine,
    language: LanguageModel,
    config: Config,
    compute: Compute,
    items: Sequence[int],
    *,
    group: int,
    temperature: float,
    seed: int,
    step: int,
) -> list[Group]:
    """``group`` episodes of each training item, booked in ``compute``; ``seed`` and ``step`` key what is drawn."""
    before = engine.counters.executed_tokens
    groups = run_episodes(
        engine,
        language.chat,
        config.task.train,
        items,
        group_size=group,
        params=SamplingParams(config.rollout.max_new_tokens, temperature),
        seed=seed,
        step=step,
        env_kwargs=config.task.train_kwargs,
        max_context=language.max_context,
    )
    episodes = [episode for each in groups for episode in each.episodes]
    compute.generate(
        sum(episode.num_tokens for episode in episodes),
        engine.counters.executed_tokens - before,
        samples=len(episodes),
    )
    return groups


@dataclass(frozen=True, slots=True)
class Batch:
    """The episodes of one update."""

    groups: list[Group]
    dropped: int
    """Groups that were answered and replaced."""
    spent: Compute
    """What drawing them cost."""
    staleness: int = 0
    """Updates between the weights that drew them and those that are trained."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Whatever an RL arm's batches are a function of, but for the step."""

    engine: Engine
    language: LanguageModel
    config: Config
    """``rl`` is resolved."""
    seed: int
    num_items: int

    def batch(self, step: int) -> Batch:
        """``rl.prompts`` groups, tied ones replaced as ``rl.resample`` says."""
        settings, spent = self.config.rl, Compute(self.language.num_parameters)

        def draw(again: int) -> list[int]:
            key = f"seed{self.seed}/rl" + (f"/again{again}" if again else "")
            return [item for item, _ in draw_items(self.num_items, settings.prompts, key, step)]

        def sample(items: Sequence[int], again: int) -> list[Group]:
            # An item that comes up in two rounds of one step is answered anew.
            seed = digest("again", self.seed, again) >> 1 if again else self.seed
            groups = sample_groups(
                self.engine, self.language, self.config, spent, items,
                group=settings.group, temperature=settings.temperature, seed=seed, step=step,
            )  # fmt: skip
            return weighed(groups, settings.reward_parts)

        return Batch(*collect(draw, sample, settings.resample or 0), spent)
