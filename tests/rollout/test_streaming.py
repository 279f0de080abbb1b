"""Episodes over an engine that streams: what a slow environment may not hold up, and what timing may not change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text

from sftrl_fast.core import Group
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.request import SamplingParams

TASK = "toy/Talk-v0"
POINTS = "sftrl/points-text-train-v1"
SPACE = Text(100, min_length=0)


class Talk(gymnasium.Env[str, str]):
    """Asks for three answers. Item 0 dawdles, and with ``gate`` until ``opened``."""

    opened = threading.Event()
    answered: list[int] = []  # noqa: RUF012
    broken = False

    def __init__(self, gate: bool = False, jitter: int = 0) -> None:
        self.observation_space = self.action_space = SPACE
        self.gate = gate
        self.random = np.random.default_rng(jitter)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self.index, self.left = int(options["index"]), 3
        return f"{self.index} 4 7", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.broken:
            raise RuntimeError("the environment broke")
        time.sleep(float(self.random.uniform(0, 0.003)))
        if self.gate and self.index == 0:
            assert Talk.opened.wait(30)
        self.left -= 1
        Talk.answered.append(self.index)
        if len([index for index in Talk.answered if index]) == 9:
            Talk.opened.set()
        over = self.left == 0
        info = {"success": False, "outcome": len(action), "attempts_left": self.left}
        return "" if over else f"again {len(action)}", float(len(action)), False, over, info


@pytest.fixture(autouse=True)
def _toy_task() -> Iterator[None]:
    entry: Any = Talk
    gymnasium.register(TASK, entry_point=entry, disable_env_checker=True)
    Talk.opened.clear()
    Talk.answered.clear()
    yield
    del gymnasium.registry[TASK]


def engine(language: LanguageModel, **settings: Any) -> NativeEngine:
    return NativeEngine(
        language.model, language.chat.stop_ids, **{"max_sequences": 64, "cache_tokens": 8192} | settings
    )


def run(
    engine: NativeEngine, language: LanguageModel, items: Sequence[int], env_id: str = TASK, **kwargs: Any
) -> list[Group]:
    return run_episodes(
        engine, language.chat, env_id, items, group_size=kwargs.pop("group", 1), seed=3, step=1,
        params=SamplingParams(12, 0.9), env_kwargs=kwargs, max_context=1024,
    )  # fmt: skip


def test_a_slow_environment_holds_up_nobody_else(tiny: LanguageModel) -> None:
    """Item 0's first verdict comes only when all other dialogues are over."""
    native = engine(tiny)
    groups = run(native, tiny, [0, 1, 2, 3], gate=True)
    assert [len(group.episodes[0].turns) for group in groups] == [3] * 4
    assert Talk.answered[:9].count(0) == 0
    assert native.cache.free == native.cache.pages


def test_timing_changes_no_bit(tiny: LanguageModel) -> None:
    first = run(engine(tiny), tiny, [5, 0, 2], group=3, jitter=1)
    for settings, jitter in (({}, 2), ({"cache_tokens": 448, "max_sequences": 4}, 3)):
        native = engine(tiny, **settings)
        assert run(native, tiny, [5, 0, 2], group=3, jitter=jitter) == first
        assert native.cache.free == native.cache.pages


def test_history_is_not_read_again(tiny: LanguageModel) -> None:
    native = engine(tiny)
    groups = run(native, tiny, [1, 2, 3, 4], group=2)
    added = sum(episode.num_tokens for group in groups for episode in group.episodes)
    assert native.counters.executed_tokens <= added


def test_what_an_environment_raises_ends_the_call_and_leaves_nothing_open(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = engine(tiny)
    monkeypatch.setattr(Talk, "broken", True)
    with pytest.raises(RuntimeError, match="the environment broke"):
        run(native, tiny, [1, 2, 3])
    assert native.cache.free == native.cache.pages
    assert not native.scheduler.busy
    monkeypatch.setattr(Talk, "broken", False)
    assert run(native, tiny, [1])


def test_cards_are_judged_in_the_batches_they_end_in(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftrl_fast.tasks.general_points.vector_env import GeneralPointsVectorEnv

    sizes: list[int] = []
    plain = GeneralPointsVectorEnv.step_rows

    def counted(self: Any, rows: Any, actions: Any) -> Any:
        sizes.append(len(rows))
        return plain(self, rows, actions)

    monkeypatch.setattr(GeneralPointsVectorEnv, "step_rows", counted)
    native = engine(tiny)
    groups = run_episodes(
        native, tiny.chat, POINTS, [3, 9], group_size=8, params=SamplingParams(44, 0.7), seed=0, step=0,
        env_kwargs={"verify_iter": 2}, max_context=1024,
    )  # fmt: skip
    assert sum(sizes) == sum(len(e.turns) for group in groups for e in group.episodes)
    assert len(sizes) > 2, "answers of different lengths end at different steps"
    assert native.cache.free == native.cache.pages
