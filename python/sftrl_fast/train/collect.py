"""Episodes for one update, and what a log wants to know about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sftrl_fast.core import Group
from sftrl_fast.evaluate import recognition


def collect(
    draw: Callable[[int], Sequence[int]], sample: Callable[[Sequence[int], int], list[Group]], rounds: int
) -> tuple[list[Group], int]:
    """Groups of the items ``draw(0)``, those of equal reward replaced by new items' (DAPO, arXiv 2503.14476, 3.2).

    ``draw(round)`` names as many items as the batch has, ``sample(items, round)`` answers them. Each of at most
    ``rounds`` further rounds answers as many new items as groups are still tied; of the new groups those that are not
    tied take the place of tied ones. What is tied in the end stays, so that a batch has one size. Returns the groups
    and the number of others that were answered and dropped.
    """
    groups = list(sample(draw(0), 0))
    dropped = 0
    for again in range(1, rounds + 1):
        places = [place for place, group in enumerate(groups) if tied(group)]
        if not places:
            break
        fresh = sample(draw(again)[: len(places)], again)
        dropped += len(fresh)
        for group in fresh:
            if not tied(group):
                groups[places.pop()] = group
    return groups, dropped


def tied(group: Group) -> bool:
    """True if the group's episodes all earned the same."""
    return len({episode.reward for episode in group.episodes}) < 2


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over episodes, and the share of groups that teach a method that compares within groups something."""
    episodes = [episode for group in groups for episode in group.episodes]
    turns = [turn for episode in episodes for turn in episode.turns]
    metrics = {
        "reward": float(np.mean([episode.reward for episode in episodes])),
        "success": float(np.mean([episode.success for episode in episodes])),
        "first_try": float(np.mean([episode.turns[0].verdict.success for episode in episodes])),
        "attempts": len(turns) / len(episodes),
        "answer_tokens": float(np.mean([len(turn.answer_ids) for turn in turns])),
        "truncated": float(np.mean([not turn.stopped for turn in turns])),
        "mixed_groups": sum(not tied(group) for group in groups) / len(groups),
    }
    for name in {name: None for turn in turns for name in turn.verdict.parts}:
        metrics[f"reward/{name}"] = sum(turn.verdict.parts.get(name, 0.0) for turn in turns) / len(episodes)
    read = recognition(episodes)
    return metrics if read is None else metrics | {"recognition": read}
