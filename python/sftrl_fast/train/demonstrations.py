"""Right answers as verified episodes: the expert's part in an update that mixes demonstrations into RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sftrl_fast.algo.demonstrations import MIXINGS
from sftrl_fast.algo.recipes import Recipe
from sftrl_fast.algo.rewards import weighed
from sftrl_fast.config import Config
from sftrl_fast.core import Group, Row, TaskEnv
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import BatchEngine, Completion, Request, SamplingParams
from sftrl_fast.train.pack import episode_rows


class Reciter(BatchEngine):
    """An engine that draws nothing: sample s of an item is the expert's draw s, each token of probability 1."""

    name = "expert"

    def __init__(self, env: TaskEnv, chat: Chat) -> None:
        super().__init__()
        self._env, self._chat = env, chat

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams | Sequence[SamplingParams],  # noqa: ARG002
    ) -> list[Completion]:
        """Whole answers, whatever ``params`` say."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        key = request.key
        known = self._env.demonstration(key.prompt, key.sample)
        # An answer that the task's rewards do not accept is given again: the expert has no other.
        answer = known if isinstance(known, str) else known[min(key.turn, len(known) - 1)]
        ids = self._chat.answer_ids(answer)
        certain = [0.0] * len(ids)
        return Completion(ids, certain, certain, stopped=True)


def demonstrated(
    groups: list[Group], row: Recipe, config: Config, language: LanguageModel
) -> tuple[list[Group], list[Row]]:
    """``groups`` with ``rl.demonstrations`` right answers to their items, as ``row`` has them shown.

    They come within the groups, to be compared with the others, or as rows of advantage 1 to train on beside them.
    ``config.rl`` is resolved.
    """
    mixing, count = MIXINGS[row.demonstrations], config.rl.demonstrations
    if mixing is None or count is None:
        return groups, []
    shown = run_episodes(
        Reciter(task_env(config.task.train, config.task.train_kwargs), language.chat),
        language.chat,
        config.task.train,
        [group.index for group in groups],
        group_size=count,
        params=SamplingParams(config.rollout.max_new_tokens),
        seed=0,
        step=0,
        env_kwargs=config.task.train_kwargs,
        max_context=language.max_context,
    )
    shown = weighed(shown, config.rl.reward_parts)
    for episode in (episode for group in shown for episode in group.episodes):
        episode.demonstrated = True
    if not mixing.compared:
        return groups, [replace(r, advantages=[1.0] * len(r.turns)) for r in episode_rows(shown)]
    pairs = zip(groups, shown, strict=True)
    return [Group(own.index, own.episodes + right.episodes) for own, right in pairs], []
