"""A text model is given sight by the command; the tower learns to read within a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sftrl_fast.config import OptimizerConfig, PretrainConfig
from sftrl_fast.models.load import load
from sftrl_fast.models.sight import Tower, give_sight
from sftrl_fast.runtime.progress import Progress
from sftrl_fast.tasks import corpora
from sftrl_fast.train.pretrain import pretrain
from sftrl_fast.train.pretrain_pictures import regions, teach_to_read

QUICK = OptimizerConfig(lr=2e-3, warmup_steps=5)


def test_the_tower_learns_to_read() -> None:
    torch.manual_seed(0)
    language = give_sight(load("tiny", device="cpu"), Tower(layers=1), (1, 4))
    config = PretrainConfig(corpus="cards", reading_steps=40, reading_batch=16, optimizer=QUICK)
    with Progress() as progress:
        stream = corpora.READING["cards"](np.random.default_rng(0))
        right = teach_to_read(language, stream, config, progress)
    assert right > 0.2, "a thirteenth would be chance"


def test_regions_are_where_they_are_in_the_picture() -> None:
    torch.manual_seed(0)
    language = give_sight(load("tiny", device="cpu"), Tower(layers=1, global_layers=1), (1,))
    blank = np.zeros((112, 112, 3), np.uint8)
    corner = blank.copy()
    corner[60:, :50] = 255
    with torch.no_grad():
        before, after = regions(language.model, language.vision, [blank, corner], (2, 2))
    change = (after - before).norm(dim=-1)
    assert change.argmax() == 2, "the lower left of two rows and two columns"


def test_the_command_writes_a_model_that_loads(tmp_path: Path) -> None:
    config = PretrainConfig(
        corpus="cards", reading_steps=2, reading_batch=4, steps=2, batch=4, optimizer=QUICK, threads=1
    )
    pretrain(config, tmp_path / "m")
    language = load(str(tmp_path / "m"), device="cpu")
    assert language.vision is not None
    assert 1e6 < language.num_parameters < 3e6
    assert sum(file.stat().st_size for file in (tmp_path / "m").iterdir()) < 10e6
