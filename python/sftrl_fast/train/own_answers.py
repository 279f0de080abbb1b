"""Self-SFT: the model's own right answers as demonstrations (rejection sampling; RFT, arXiv 2308.01825)."""

from __future__ import annotations

from dataclasses import dataclass

from sftrl_fast.config import Config, SFTConfig
from sftrl_fast.core import Episode, Group, Row, TaskEnv
from sftrl_fast.evaluate import make_engine
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.batches import draw_items
from sftrl_fast.train.sample import sample_groups
from sftrl_fast.train.sft import Demonstrations


@dataclass(slots=True)
class Author:
    """A model that no training changes, and what its answers cost."""

    language: LanguageModel
    config: Config
    compute: Compute

    def answers(self, items: list[int], settings: SFTConfig, key: str, draw: int) -> list[Group]:
        """``sft.tries`` episodes of each of ``items``; ``key`` and ``draw`` name what is drawn.

        By an engine of their own: what another had kept of earlier calls would be missing after a resumption, and with
        it the tokens it executes.
        """
        return sample_groups(
            make_engine(self.language, self.config), self.language, self.config, self.compute, items,
            group=settings.tries, temperature=settings.temperature, seed=digest("own answers", key) >> 1, step=draw,
        )  # fmt: skip


class OwnAnswers(Demonstrations):
    """Each visit to an item samples it anew and shows every right answer that differs from the others.

    An item without one shows nothing; ``facts`` tells how many.
    """

    def __init__(self, env: TaskEnv, author: Author, config: SFTConfig, key: str) -> None:
        super().__init__(env, author.language.chat, config, key)
        self._author = author

    def batch(self, step: int) -> list[Row]:
        """The rows of optimizer step ``step``: of as many items as ``batch`` says, in the order of the expert's."""
        visits = draw_items(self.env.num_items, self.config.batch, self.key, step)
        groups: list[Group] = []
        for epoch in sorted({epoch for _, epoch in visits}):
            items = [item for item, visited in visits if visited == epoch]
            groups += self._author.answers(items, self.config, self.key, epoch)
        shown = [right_answers(group) for group in groups]
        self.facts = {
            "unsolved": sum(not rows for rows in shown) / len(shown),
            "own_answers": sum(len(rows) for rows in shown),
        }
        return [row for rows in shown for row in rows]


def right_answers(group: Group) -> list[Row]:
    """The successful episodes of a group, each dialogue once; wrong attempts stay in them and are not trained."""
    rows = {tuple(row.ids): row for row in map(_row, group.episodes) if row is not None}
    return list(rows.values())


def _row(episode: Episode) -> Row | None:
    """None for an episode that failed, or whose right answer was cut off by the length limit."""
    right = [turn.verdict.right for turn in episode.turns]
    if not episode.success or not all(turn.stopped for turn in episode.turns if turn.verdict.right):
        return None
    ids: list[int] = []
    trained: list[bool] = []
    for turn, on in zip(episode.turns, right, strict=True):
        ids += turn.prompt_ids + turn.answer_ids
        trained += [False] * len(turn.prompt_ids) + [on] * len(turn.answer_ids)
    images = tuple(turn.image for turn in episode.turns if turn.image is not None)
    seen = int(episode.turns[0].image is not None)
    return Row(ids, trained, len(episode.turns[0].prompt_ids), images=images, prompt_images=seen)
