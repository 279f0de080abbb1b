"""Success over whole evaluation sets: greedy, each item once, with the training budget of turns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

from sftrl_fast.config import Config
from sftrl_fast.core import TaskEnv, UserError
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.ops.dispatch import choose
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Engine, SamplingParams
from sftrl_fast.tasks.seeding import unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of each item of a set. ``successes[i]`` belongs to ``items[i]``."""

    items: list[int]
    questions: list[int]
    """The question each of ``items`` asks; see :meth:`sftrl_fast.core.TaskEnv.questions`."""
    successes: list[bool]
    attempts: float
    """Mean answers given an item."""


def load_configured(config: Config) -> LanguageModel:
    """The configured model, on the configured device and threads."""
    if config.model.threads:
        torch.set_num_threads(config.model.threads)
    return load(config.model.name, dtype=config.model.dtype, device=config.model.device)


def make_engine(language: LanguageModel, config: Config) -> Engine:
    """The configured engine, on the model's own weights.

    Where ``auto`` has to fall back on transformers, the log says why. ``UserError`` if ``native`` is asked for and
    does not cover the model.
    """
    chat, settings = language.chat, config.rollout
    reason = why_not_native(language)
    if settings.backend == "native" and reason:
        raise UserError(f"rollout.backend='native' does not cover the model: {reason}; use auto or hf")
    weight = next(language.model.parameters())
    if not reason and settings.backend == "auto" and choose("cached_attention", tensor=weight) == "torch":
        reason = f"attention over the cache has no kernel for {weight.dtype} on {weight.device.type} here"
    if settings.backend == "hf" or reason:
        if settings.backend == "auto":
            logger.warning("rollouts use transformers' generate, which is slower: %s", reason)
        return HFBackend(
            language.model, chat.stop_ids, min(chat.stop_ids), max_sequences=settings.max_sequences,
            decode=chat.decode,
        )  # fmt: skip
    return NativeEngine(
        language.model, chat.stop_ids, max_sequences=settings.max_sequences, cache_tokens=settings.cache_tokens,
        decode=chat.decode,
    )  # fmt: skip


def why_not_native(language: LanguageModel) -> str:
    """What the native engine lacks for the model; the empty string if it covers it."""
    return Decoder.why_not(language.model)


def task_env(env_id: str, env_kwargs: Mapping[str, Any]) -> TaskEnv:
    """The environment behind an id, without wrappers, for its items and demonstrations.

    ``UserError`` for an id that is not registered, and for options the environment refuses.
    """
    try:
        fixed = sorted(set(gymnasium.spec(env_id).kwargs).intersection(env_kwargs))
        if fixed:
            raise UserError(
                f"task.options.{fixed[0]}: {env_id!r} says that itself; choose another id instead"
            )
        env = gymnasium.make(env_id, **env_kwargs).unwrapped
    except (gymnasium.error.Error, ImportError, TypeError) as fault:
        raise UserError(f"task={env_id!r} cannot be made: {fault}") from None
    if not isinstance(env, TaskEnv):
        raise UserError(
            f"task={env_id!r} lacks num_items, strata(), questions() or demonstration(); see sftrl_fast.core.TaskEnv"
        )
    return env


def evaluate_set(engine: Engine, chat: Chat, env_id: str, config: Config, *, max_context: int) -> Evaluation:
    """Answer every item of the set, or with ``eval.limit`` a fixed stratified subset of that size."""
    env = task_env(env_id, config.task.env_kwargs)
    items = subset(env.strata(), config.eval.limit, env_id)
    params = SamplingParams(max_new_tokens=config.rollout.max_new_tokens, temperature=0.0)
    groups = run_episodes(
        engine, chat, env_id, items, group_size=1, params=params, seed=0, step=0,
        env_kwargs=config.task.env_kwargs, max_context=max_context,
    )  # fmt: skip
    episodes = [group.episodes[0] for group in groups]
    successes = [episode.success for episode in episodes]
    attempts = sum(len(episode.turns) for episode in episodes)
    questions = np.asarray(env.questions())[items].tolist()
    return Evaluation(items, questions, successes, attempts / max(1, len(items)))


def subset(strata: Sequence[int] | np.ndarray, limit: int, key: str) -> list[int]:
    """``limit`` of the items (all with 0), each stratum in proportion, chosen by hash and so always the same."""
    labels = np.asarray(strata)
    if limit == 0 or limit >= len(labels):
        return list(range(len(labels)))
    # Spreading each stratum's items evenly over [0, 1) and taking the lowest keeps the proportions to within one.
    place = np.empty(len(labels))
    for stratum in np.unique(labels):
        members = np.flatnonzero(labels == stratum)
        shuffled = sorted(members, key=lambda item: unit("subset", key, int(item)))
        place[shuffled] = (np.arange(len(members)) + 0.5) / len(members)
    return sorted(np.argsort(place, kind="stable")[:limit].tolist())


def evaluate_model(config: Config, sets: Mapping[str, str]) -> dict[str, Evaluation]:
    """Load the configured model and evaluate it on each of ``sets`` (name to environment id)."""
    language = load_configured(config)
    engine = make_engine(language, config)
    max_context = language.max_context
    return {
        name: evaluate_set(engine, language.chat, env_id, config, max_context=max_context)
        for name, env_id in sets.items()
    }
