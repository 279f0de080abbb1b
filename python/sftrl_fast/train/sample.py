"""Episodes of an engine for training, and their place in the compute ledger."""

from __future__ import annotations

from collections.abc import Sequence

from sftrl_fast.config import Config
from sftrl_fast.core import Group
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import Engine, SamplingParams
from sftrl_fast.runtime.compute import Compute


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
