"""The shipped models that walk routes, in words and by street views."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftrl_fast.config import load_config
from sftrl_fast.evaluate import evaluate_set, make_engine
from sftrl_fast.models.load import load
from sftrl_fast.models.tiny import VIEWING_ASSETS, WALKING_ASSETS
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import SamplingParams
from sftrl_fast.tasks.navigation.sets import made_routes

CHANCE = 0.25
"""Of right decisions, for who knows of turns and straight ways and guesses the words of the turns, generously."""

LONG = 12
"""Points of a long walk; each takes a turn at least."""


@pytest.mark.parametrize("assets", [WALKING_ASSETS, VIEWING_ASSETS], ids=lambda folder: folder.name)
def test_it_is_small(assets: Path) -> None:
    language = load(assets.name, device="cpu")
    assert 5e5 < language.num_parameters < 2e6
    assert sum(file.stat().st_size for file in assets.iterdir()) < 10e6


@pytest.mark.parametrize(("preset", "assets"), [("nav-text", WALKING_ASSETS), ("nav-image", VIEWING_ASSETS)])
def test_it_walks_in_cities_and_languages_above_chance_and_below_the_ceiling(
    preset: str, assets: Path
) -> None:
    config = load_config(preset=preset, overrides={"eval.limit": 20, "model.device": "cpu"})
    assert config.model.name == assets.name
    language = load(config.model.name, device="cpu")
    engine = make_engine(language, config)
    assert engine.name == "native"
    for name, env_id in config.task.eval.items():
        found = evaluate_set(engine, language.chat, env_id, config, max_context=language.max_context)
        assert found.first_try > 2 * CHANCE, name
        assert 0 < sum(found.successes) < len(found.items), name


def test_walks_of_many_turns_are_read_once() -> None:
    """Every token of a dialogue goes through the model once, however many turns follow it, and a group's prompt once
    for the group; the answers are those of an engine that keeps nothing."""
    language = load("tiny-nav", device="cpu")
    config = load_config(preset="nav-text", overrides={"model.device": "cpu"})
    items = [i for i, route in enumerate(made_routes("train")) if len(route.spots) >= LONG][:6]
    engine = make_engine(language, config)
    assert engine.name == "native"
    over_generate = HFBackend(language.model, language.chat.stop_ids, 0, max_sequences=16)
    found = [
        run_episodes(
            one, language.chat, config.task.train, items, group_size=2, params=SamplingParams(64, temperature=0.0),
            seed=0, step=0, env_kwargs={"verify_iter": 2}, max_context=language.max_context,
        )
        for one in (engine, over_generate)
    ]  # fmt: skip
    episodes, expected = ([e for group in groups for e in group.episodes] for groups in found)
    turns = [len(episode.turns) for episode in episodes]
    assert sum(count >= LONG for count in turns) >= len(turns) / 2
    for one, other in zip(episodes, expected, strict=True):
        assert [turn.answer_ids for turn in one.turns] == [turn.answer_ids for turn in other.turns]
    first = sum(len(group.episodes[0].turns[0].prompt_ids) for group in found[0])
    later = sum(len(turn.prompt_ids) for episode in episodes for turn in episode.turns[1:])
    answers = sum(len(turn.answer_ids) for episode in episodes for turn in episode.turns)
    assert engine.counters.executed_tokens <= first + later + answers
    assert over_generate.counters.executed_tokens > 5 * engine.counters.executed_tokens
