"""Answers to pictures, in groups of 8: ours over transformers' generate, and generate given a picture for each row.

The model is the shipped ``tiny-image`` on random tables; answers have 24 tokens, drawn greedily on both sides,
and both begin with the picture as an array.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Bench
from sftrl_fast.models.load import LanguageModel, load, locate
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams
from sftrl_fast.tasks.general_points.render import draw_table

GROUP = 8
TOKENS = 24
QUESTION = "Name the cards."


def naive(language: LanguageModel, pictures: list[np.ndarray], processor: Any) -> None:
    """One row an answer, each with pixels of its own."""
    rows = [picture for picture in pictures for _ in range(GROUP)]
    inputs = processor([[Image.fromarray(picture)] for picture in rows], return_tensors="pt")
    del inputs["num_tiles"]
    ids = torch.tensor([language.chat.prompt_ids(QUESTION, rows[0])] * len(rows))
    seen = (ids == language.model.config.image_token_index).cumsum(1)[:, :, None, None]
    model: Any = language.model
    model.generate(
        inputs=ids,
        attention_mask=torch.ones_like(ids),
        cross_attention_mask=seen,
        generation_config=GenerationConfig(
            max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=0, pad_token_id=0
        ),
        **inputs,
    )


def ours(engine: HFBackend, language: LanguageModel, pictures: list[np.ndarray]) -> None:
    requests = [
        Request(
            language.chat.prompt_ids(QUESTION, picture), RequestKey(0, 0, place, sample, 0), images=(picture,)
        )
        for place, picture in enumerate(pictures)
        for sample in range(GROUP)
    ]
    engine.generate(requests, SamplingParams(TOKENS, temperature=0.0))


def main() -> None:
    bench = Bench("pictures", "Answers to pictures, in groups of 8")
    language = load("tiny-image", device="cpu")
    processor = MllamaImageProcessorPil.from_pretrained(locate("tiny-image"))
    # No token ends an answer: both sides draw as many.
    engine = HFBackend(language.model, frozenset(), 0, max_sequences=512, vision=language.vision)
    rng = np.random.default_rng(0)
    for sequences in (16,) if bench.args.quick else (16, 64):
        pictures = [
            draw_table(rng.integers(1, 14, 4).tolist(), [0, 3, 0, 3]) for _ in range(sequences // GROUP)
        ]
        sides = {
            "transformers": lambda p=pictures: naive(language, p, processor),
            "hf": lambda p=pictures: ours(engine, language, p),
        }
        bench.compare_rate(
            f"{sequences} sequences", "answer tokens", "tokens/s", sides, work=sequences * TOKENS,
            ratio_to="transformers", repeat=3,
        )  # fmt: skip
    bench.finish()


if __name__ == "__main__":
    main()
