"""The shipped model that sees."""

from __future__ import annotations

from sftrl_fast.config import load_config
from sftrl_fast.evaluate import evaluate_set, make_engine
from sftrl_fast.models.load import load
from sftrl_fast.models.tiny import IMAGE_ASSETS

READS = 0.5
"""Share of tables all of whose cards are named; a blind guess gets one in some thousand."""


def test_it_is_small() -> None:
    language = load("tiny-image", device="cpu")
    assert 1e6 < language.num_parameters < 3e6
    assert sum(file.stat().st_size for file in IMAGE_ASSETS.iterdir()) < 10e6


def test_it_reads_cards_that_no_dialogue_of_its_own_showed() -> None:
    config = load_config(preset="tiny-image", overrides={"eval.limit": 40, "model.device": "cpu"})
    language = load(config.model.name, device="cpu")
    engine = make_engine(language, config)
    for name in ("id", "visual_ood"):
        found = evaluate_set(
            engine, language.chat, config.task.eval[name], config, max_context=language.max_context
        )
        assert found.recognition is not None
        assert found.recognition > READS, name
