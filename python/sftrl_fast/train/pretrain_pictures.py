"""``sftrl-fast pretrain`` on a corpus with pictures: a text model is given sight and taught to use it.

The tower comes first: on pictures alone, it says of each region what is there, through a throw-away layer on what the
cross-attention will read. Then the whole model learns on dialogues. Taught end to end from nothing, such a model had
hardly begun to read after 72,000 pictures.

The shipped ``tiny-image`` was made by

    sftrl-fast pretrain --corpus cards --reading_steps 500 --reading_batch 32 --steps 1200 --batch 32 --threads 1
        --micro_batch_tokens 8192 --optimizer.lr 1e-3 --optimizer.warmup_steps 20 --out DIR

A text model with weights that are worth keeping is aligned by ``--start NAME --keep_text true``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftrl_fast.config import PretrainConfig
from sftrl_fast.core import Image
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.models.mllama import Mllama
from sftrl_fast.models.sight import Tower, even_places, freeze_text, give_sight
from sftrl_fast.runtime.progress import Progress
from sftrl_fast.tasks import corpora
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import dialogue_row
from sftrl_fast.train.sft import cross_entropy_step

OPEN_GATE = 0.5
"""Where the gates of the new layers begin: closed ones would let no gradient through to what is behind them."""

Labelled = tuple[Image, np.ndarray]


def pretrain_pictures(config: PretrainConfig, progress: Progress) -> LanguageModel:
    """The model of ``config.start`` with sight, taught on ``config.corpus``."""
    text = load(config.start, device="cpu")
    language = give_sight(text, Tower(), even_places(text.model.config.num_hidden_layers))
    if config.keep_text:
        freeze_text(language)
    rng = np.random.default_rng(digest("reading", config.corpus, config.seed))
    teach_to_read(language, corpora.READING[config.corpus](rng), config, progress)
    with torch.no_grad():
        for name, parameter in language.model.named_parameters():
            if name.endswith(("attn_gate", "mlp_gate")):
                parameter.fill_(OPEN_GATE)
    rng = np.random.default_rng(digest("pretrain", config.corpus, config.seed))
    dialogues = corpora.stream(config.corpus, rng)
    optimizer = Optimizer(language.model, config.optimizer, parts=language.parts)
    language.model.train()
    progress.stage("dialogues", config.steps)
    for step in range(config.steps):
        rows = [dialogue_row(language.chat, dialogue) for dialogue in islice(dialogues, config.batch)]
        result = cross_entropy_step(language.model, rows, config.micro_batch_tokens, language.vision)
        optimizer.step(step / config.steps)
        progress.advance(tokens=sum(len(row.ids) for row in rows), loss=result.loss)
    return language


def teach_to_read(
    language: LanguageModel, stream: Iterator[Labelled], config: PretrainConfig, progress: Progress
) -> float:
    """Train tower and projector to tell what each region of a picture shows; the share read rightly at the end."""
    model: Any = language.model
    vision = language.vision
    assert isinstance(vision, Mllama)
    model.train()
    reader = nn.Linear(model.config.text_config.hidden_size, _classes(stream))
    parts = nn.ModuleList([model.model.vision_model, model.model.multi_modal_projector, reader])
    optimizer = Optimizer(parts, config.optimizer, parts=language.parts)
    right = 0.0
    progress.stage("reading", config.reading_steps)
    for step in range(config.reading_steps):
        batch = list(islice(stream, config.reading_batch))
        labels = torch.from_numpy(np.stack([label for _, label in batch])).to(language.device)
        scores = reader(regions(model, vision, [image for image, _ in batch], labels.shape[1:]))
        loss = F.cross_entropy(scores.flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step(step / config.reading_steps)
        right = float((scores.argmax(-1) == labels).float().mean())
        progress.advance(loss=float(loss.detach()), right=right)
    return right


def regions(model: Any, vision: Mllama, images: Sequence[Image], grid: Sequence[int]) -> Tensor:
    """What the cross-attention reads, averaged over each region of one-tile pictures: ``[P, rows, columns, D]``."""
    states = vision.states(model, vision.tiles(images, model.dtype, model.device))
    side = round((vision.patches - 1) ** 0.5)
    rows, columns = grid
    # The first position is the class's.
    patches = states[:, 1:].unflatten(1, (rows, side // rows, columns, side // columns))
    return patches.mean(dim=(2, 4))


def _classes(stream: Iterator[Labelled]) -> int:
    """One more than the highest label among some of the stream."""
    return 1 + max(int(labels.max()) for _, labels in islice(stream, 256))
