"""Answers to pictures, in groups of 8: the engine, our backend over generate, and generate with a picture a row.

Two models: the shipped ``tiny-image`` in float32, and in bfloat16 SmolLM2's weights with eight new cross-attention
layers and a vision tower of 22 million parameters on random weights. Answers have 24 tokens, drawn greedily on every
side, and every side begins with the picture as an array. Also ``bench_rollout.py --images``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Bench, machine_device
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.models.sight import Tower, give_sight
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Engine, Request, RequestKey, SamplingParams
from sftrl_fast.tasks.general_points.render import draw_table

GROUP = 8
TOKENS = 24
THREADS = 2
QUESTION = "Name the cards."
BASE = "generate"
VIT_SMALL = Tower(tile=224, patch=14, hidden=384, heads=6, layers=12, global_layers=2, feed_forward=1536)
CROSS = (3, 7, 11, 15, 19, 23, 27, 31)


def tiny_image() -> LanguageModel:
    return load("tiny-image", dtype="float32", device=str(machine_device()))


def smollm2_with_sight() -> LanguageModel:
    torch.manual_seed(0)
    seeing = give_sight(
        load("smollm2-135m", dtype="bfloat16", device=str(machine_device())), VIT_SMALL, CROSS
    )
    torch.nn.Module.to(seeing.model, torch.bfloat16)
    seeing.model.eval()
    return seeing


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "tiny-image": tiny_image,
    "smollm2 with sight": smollm2_with_sight,
}


def naive(language: LanguageModel, pictures: list[np.ndarray], processor: Any) -> None:
    """One row an answer, each with pixels of its own."""
    rows = [picture for picture in pictures for _ in range(GROUP)]
    inputs = processor([[Image.fromarray(picture)] for picture in rows], return_tensors="pt")
    del inputs["num_tiles"]
    model: Any = language.model
    ids = torch.tensor([language.chat.prompt_ids(QUESTION, rows[0])] * len(rows), device=model.device)
    seen = (ids == language.model.config.image_token_index).cumsum(1)[:, :, None, None]
    model.generate(
        inputs=ids,
        attention_mask=torch.ones_like(ids),
        cross_attention_mask=seen,
        generation_config=GenerationConfig(
            max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=0, pad_token_id=0
        ),
        **inputs.to(model.device),
    )


def ours(engine: Engine, language: LanguageModel, pictures: list[np.ndarray]) -> None:
    requests = [
        Request(
            language.chat.prompt_ids(QUESTION, picture), RequestKey(0, 0, place, sample, 0), images=(picture,)
        )
        for place, picture in enumerate(pictures)
        for sample in range(GROUP)
    ]
    engine.generate(requests, SamplingParams(TOKENS, temperature=0.0))


def bench_model(bench: Bench, name: str, repeat: int) -> None:
    language = MODELS[name]()
    size = language.model.config.vision_config.image_size
    processor = MllamaImageProcessorPil(size={"height": size, "width": size}, max_image_tiles=1)
    # No token ends an answer: all sides draw as many.
    engine = NativeEngine(language.model, frozenset(), max_sequences=64, vision=language.vision)
    over_generate = HFBackend(language.model, frozenset(), 0, max_sequences=64, vision=language.vision)
    rng = np.random.default_rng(0)
    for sequences in (16,) if bench.args.quick else (16, 64):
        tables = [
            draw_table(rng.integers(1, 14, 4).tolist(), [0, 3, 0, 3]) for _ in range(sequences // GROUP)
        ]
        case, counters = f"{name}, seqs={sequences}", engine.counters
        before = counters.pictures, counters.picture_seconds
        sides: dict[str, Callable[[], object]] = {
            "native": partial(ours, engine, language, tables),
            "hf": partial(ours, over_generate, language, tables),
            BASE: partial(naive, language, tables, processor),
        }
        seconds = bench.compare_rate(
            case, "tokens_per_s", "tokens/s", sides, work=sequences * TOKENS, ratio_to=BASE, repeat=repeat
        )
        seen, looking = counters.pictures - before[0], counters.picture_seconds - before[1]
        bench.value(case, "native", "time of the tower a picture", looking / seen * 1e3, "ms")
        share = looking / (repeat + 1) / seconds["native"]
        bench.value(case, "native", "tower's share of the time", share, "1")
        bench.value(case, "native", "pictures encoded", seen / (repeat + 1), "1")
        bench.value(case, BASE, "pictures encoded", sequences, "1")


def options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(threads=THREADS)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="all but the others"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="timed runs of each side")


def main() -> None:
    bench = Bench("pictures", "Answers to pictures, in groups of 8", options=options)
    for name in bench.args.models:
        bench_model(bench, name, bench.args.repeat)
    bench.finish()


if __name__ == "__main__":
    main()
