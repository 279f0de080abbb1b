"""``sftrl-fast pretrain``: make the ``tiny`` model's tokenizer and weights from nothing.

Seeded: the same settings on the same machine and thread count give the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from sftrl_fast.config import PretrainConfig
from sftrl_fast.core import Dialogue, Row, UserError
from sftrl_fast.models import tiny
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import save
from sftrl_fast.runtime.progress import Progress
from sftrl_fast.tasks import corpora
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import dialogue_row
from sftrl_fast.train.pretrain_pictures import pretrain_pictures
from sftrl_fast.train.sft import cross_entropy_step


def pretrain(config: PretrainConfig, out: Path) -> None:
    """Train on a corpus and write the model folder ``out``, which must be empty or not exist."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={str(out)!r} is not empty; name a new folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.corpus in corpora.READING:
        with Progress() as progress:
            language = pretrain_pictures(config, progress)
        save(language.model, language.tokenizer, out, language.vision)
        return
    corpus = corpora.get(config.corpus)
    dialogues = corpus.stream(np.random.default_rng(digest("pretrain", config.corpus, config.seed)))
    tokenizer = tiny.build_tokenizer(islice(dialogues, corpus.tokenizer_dialogues), corpus.pieces)
    chat = Chat(tokenizer)
    model = tiny.build_model(len(tokenizer), corpus.context, corpus.spread)
    optimizer = Optimizer(model, config.optimizer)
    model.train()
    with Progress() as progress:
        progress.stage("pretrain", config.steps)
        for step in range(config.steps):
            rows = _batch(config, chat, dialogues)
            loss = cross_entropy_step(model, rows, config.micro_batch_tokens).loss
            optimizer.step(step / config.steps)
            progress.advance(tokens=sum(len(row.ids) for row in rows), loss=loss)
    save(model, tokenizer, out)


def _batch(config: PretrainConfig, chat: Chat, dialogues: Iterator[Dialogue]) -> list[Row]:
    """The rows of one optimizer step: ``batch`` dialogues, or as many as reach ``step_tokens``."""
    rows = (dialogue_row(chat, dialogue) for dialogue in dialogues)
    if not config.step_tokens:
        return list(islice(rows, config.batch))
    batch: list[Row] = []
    while sum(len(row.ids) for row in batch) < config.step_tokens:
        batch.append(next(rows))
    return batch
