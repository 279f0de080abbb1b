"""The shipped model that walks routes in words."""

from __future__ import annotations

from sftrl_fast.config import load_config
from sftrl_fast.evaluate import evaluate_set, make_engine
from sftrl_fast.models.load import load
from sftrl_fast.models.tiny import WALKING_ASSETS

CHANCE = 0.25
"""Of right decisions, for who knows of turns and straight ways and guesses the words of the turns, generously."""


def test_it_is_small() -> None:
    language = load("tiny-nav", device="cpu")
    assert 5e5 < language.num_parameters < 2e6
    assert sum(file.stat().st_size for file in WALKING_ASSETS.iterdir()) < 10e6


def test_it_walks_in_cities_and_languages_above_chance_and_below_the_ceiling() -> None:
    config = load_config(preset="nav-text", overrides={"eval.limit": 20, "model.device": "cpu"})
    assert config.model.name == WALKING_ASSETS.name
    language = load(config.model.name, device="cpu")
    engine = make_engine(language, config)
    for name, env_id in config.task.eval.items():
        found = evaluate_set(engine, language.chat, env_id, config, max_context=language.max_context)
        assert found.first_try > 2 * CHANCE, name
        assert 0 < sum(found.successes) < len(found.items), name
