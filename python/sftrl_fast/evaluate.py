"""Success over whole evaluation sets: greedy, each item once, with the training budget of turns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from sftrl_fast.config import Config
from sftrl_fast.core import Episode, Group, Observation, TaskEnv, UserError
from sftrl_fast.models.adapters import add_lora
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.forward_pass import set_pass
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.models.vision import CrossVision
from sftrl_fast.ops.dispatch import choose
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Engine, SamplingParams
from sftrl_fast.tasks.seeding import unit

logger = logging.getLogger(__name__)

SAMPLES = 4
"""Episodes of an evaluation that are kept whole."""
PICTURES_AT_ONCE = 128
"""Items evaluated together where they come with pictures, which take megabytes each; it changes no answer."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of each item of a set. ``successes[i]`` belongs to ``items[i]``."""

    items: list[int]
    questions: list[int]
    """The question each of ``items`` asks; see :meth:`sftrl_fast.core.TaskEnv.questions`."""
    successes: list[bool]
    attempts: float
    """Mean answers given an item."""
    accuracy: float
    """Share of right answers, every attempt counted (per-step accuracy as Chu et al. count it)."""
    first_try: float
    """Share of decisions answered rightly at the first attempt."""
    decisions: float = 1.0
    """Mean decisions an item took: the points of a walk, 1 where an item is one question."""
    recognition: float | None = None
    """Share of answers that read rightly what was shown; None where the task does not judge that apart."""
    samples: list[Episode] = field(default_factory=list, compare=False)
    """The first few episodes, to look at."""

    @property
    def rates(self) -> dict[str, float]:
        """What stands beside success: rates of single decisions where an item takes several, of reading where the
        task judges it apart."""
        found = {"first_try": self.first_try, "accuracy": self.accuracy} if self.decisions > 1 else {}
        return found if self.recognition is None else found | {"recognition": self.recognition}


def load_configured(config: Config) -> LanguageModel:
    """The configured model, on the configured device and threads."""
    if config.model.threads:
        torch.set_num_threads(config.model.threads)
    language = load(config.model.name, dtype=config.model.dtype, device=config.model.device)
    freeze(language, config.model.freeze)
    if config.lora.rank:
        add_lora(language.model, config.lora)
    set_pass(language.model, config.compute.trainer)
    return language


def freeze(language: LanguageModel, parts: Sequence[str]) -> None:
    """Exempt parts of a vision-language model from training. ``UserError`` for a text model, and for all parts."""
    if not parts:
        return
    known = language.parts
    if not known:
        raise UserError(f"model.freeze={list(parts)}: a model of text has no such parts; leave it out")
    if set(parts) == set(known):
        raise UserError(f"model.freeze={list(parts)} leaves nothing to train; name fewer parts")
    for part in parts:
        for module in known[part]:
            module.requires_grad_(False)


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
            decode=chat.decode, vision=language.vision,
        )  # fmt: skip
    return NativeEngine(
        language.model, chat.stop_ids, max_sequences=settings.max_sequences, cache_tokens=settings.cache_tokens,
        decode=chat.decode, vision=language.vision if isinstance(language.vision, CrossVision) else None,
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
    shows = bool(items) and Observation.of(env.reset(options={"index": items[0]})[0]).image is not None
    size = PICTURES_AT_ONCE if shows else max(1, len(items))
    groups: list[Group] = []
    for start in range(0, len(items), size):
        groups += run_episodes(
            engine, chat, env_id, items[start : start + size], group_size=1, params=params, seed=0, step=0,
            env_kwargs=config.task.env_kwargs, max_context=max_context,
        )  # fmt: skip
    episodes = [group.episodes[0] for group in groups]
    successes = [episode.success for episode in episodes]
    verdicts = [turn.verdict for episode in episodes for turn in episode.turns]
    firsts = [verdict.right for verdict in verdicts if verdict.first_try]
    questions = np.asarray(env.questions())[items].tolist()
    return Evaluation(
        items, questions, successes, len(verdicts) / max(1, len(items)),
        accuracy=sum(verdict.right for verdict in verdicts) / max(1, len(verdicts)),
        first_try=sum(firsts) / max(1, len(firsts)), decisions=len(firsts) / max(1, len(items)),
        recognition=recognition(episodes), samples=episodes[:SAMPLES],
    )  # fmt: skip


def recognition(episodes: Sequence[Episode]) -> float | None:
    """Share of the episodes' answers that read rightly what was shown; None where the task does not judge it apart."""
    read = [turn.verdict.recognised for episode in episodes for turn in episode.turns]
    judged = [found for found in read if found is not None]
    return sum(judged) / len(judged) if judged else None


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
