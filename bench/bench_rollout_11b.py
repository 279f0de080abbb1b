"""Rollouts of Llama-3.2-11B-Vision: the exact configuration, on random weights, through the real engine.

On a GPU the whole model answers. Without one, models of one and two real layers of a kind run through the same engine,
a step of each in turn: a layer's time is the difference, and what 32 self-attention layers, 8 cross-attention layers
and the head would take is added up. The vision tower and training are timed a layer at a time, by transformers'
modules. Rows say which of the figures is measured and which is added; beside them stands what an H100 cannot go below.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MllamaConfig, MllamaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Bench, machine_device
from sftrl_fast.models.mllama import Mllama
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams

SEQUENCES, GROUP, PROMPT_TOKENS, NEW_TOKENS = 64, 8, 100, 64
TRAINED_TOKENS = 512
"""Of a layer's forward and backward."""
STEPS = 12
THREADS = 2
H100_BYTES, H100_OPERATIONS = 3.35e12, 989e12
"""A second, SXM5: memory, and dense bf16 products (NVIDIA's data sheet)."""
QUICK_TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
QUICK_VISION = {
    "image_size": 56,
    "hidden_size": 32,
    "attention_heads": 2,
    "intermediate_size": 48,
    "vision_output_dim": 192,
}


def configuration(quick: bool) -> MllamaConfig:
    """transformers' defaults are the 11B model's, with tiles of 448 pixels; the Instruct checkpoint's have 560."""
    text, vision = (QUICK_TEXT, QUICK_VISION) if quick else ({}, {})
    config = MllamaConfig(text_config=dict(text), vision_config=dict(vision))
    config.image_token_index = config.text_config.vocab_size
    config.text_config.pad_token_id = 0
    return config


def cut(config: MllamaConfig, plain: int, cross: int) -> MllamaConfig:
    """The same model with ``plain`` self-attention layers and ``cross`` behind them, and a tower of two layers."""
    made = MllamaConfig.from_dict(config.to_dict())
    made.text_config.num_hidden_layers = plain + cross
    made.text_config.cross_attention_layers = list(range(plain, plain + cross))
    vision = made.vision_config
    vision.num_hidden_layers = vision.num_global_layers = 1
    vision.intermediate_layers_indices = [0]
    vision.vision_output_dim = 2 * vision.hidden_size
    return made


def random_model(config: MllamaConfig, device: torch.device) -> Any:
    """Weights of the size of a trained model's, made where they are to be."""
    with torch.device("meta"):
        model: Any = MllamaForConditionalGeneration(config).to(torch.bfloat16)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator) if parameter.dim() > 1 else parameter.fill_(0.5)
    for module in model.modules():
        # What lies in buffers and in no checkpoint is computed again.
        if hasattr(module, "compute_default_rope_parameters"):
            module.__init__(config.text_config)
            module.to(device)
    return model.eval()


def adapter(config: MllamaConfig) -> Mllama:
    vision = config.vision_config
    return Mllama(
        config.image_token_index, vision.image_size, vision.max_num_tiles,
        (vision.image_size // vision.patch_size) ** 2 + 1, (0.5,) * 3, (0.25,) * 3,
        tuple((rows, columns) for rows, columns in vision.supported_aspect_ratios),
    )  # fmt: skip


def requests(config: MllamaConfig, turn: int) -> list[Request]:
    """Groups of answers to one picture of four tiles and a prompt of random tokens."""
    rng = np.random.default_rng(turn)
    side = 2 * config.vision_config.image_size
    made = []
    for group in range(SEQUENCES // GROUP):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        context = rng.integers(0, config.text_config.vocab_size, PROMPT_TOKENS).tolist()
        context[1] = config.image_token_index
        keys = [RequestKey(turn, 0, group, sample, 0) for sample in range(GROUP)]
        made += [Request(context, key, images=(image,)) for key in keys]
    return made


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of one batch of answers."""

    whole: float
    decode_step: float
    picture: float


def decode_steps(engine: NativeEngine, asked: list[Request], new_tokens: int) -> Iterator[float]:
    """Seconds of each step that only decodes, as it is taken."""
    left = len(engine.submit(asked, SamplingParams(new_tokens)))
    while left:
        prefilled, start = engine.counters.prefill_tokens, time.perf_counter()
        left -= len(engine.step())
        if engine.counters.prefill_tokens == prefilled:
            yield time.perf_counter() - start


def answer(engine: NativeEngine, config: MllamaConfig, turn: int) -> Run:
    counters = engine.counters
    pictures, seconds = counters.pictures, counters.picture_seconds
    asked = requests(config, turn)
    began = time.perf_counter()
    steps = list(decode_steps(engine, asked, NEW_TOKENS))
    picture = (counters.picture_seconds - seconds) / max(1, counters.pictures - pictures)
    return Run(time.perf_counter() - began, median(steps), picture)


def engine_of(config: MllamaConfig, device: torch.device) -> NativeEngine:
    return NativeEngine(
        random_model(config, device), frozenset(), max_sequences=SEQUENCES, vision=adapter(config),
        cache_tokens=SEQUENCES * 256,
    )  # fmt: skip


def sizes(bench: Bench, case: str, config: MllamaConfig) -> None:
    """What follows from the configuration alone."""
    with torch.device("meta"):
        model: Any = MllamaForConditionalGeneration(config)
    text = config.text_config
    parameters = sum(p.numel() for p in model.parameters())
    language = (
        sum(p.numel() for p in model.model.language_model.layers.parameters()) + model.lm_head.weight.numel()
    )
    crossing = len(text.cross_attention_layers)
    head = text.hidden_size // text.num_attention_heads
    token = 2 * 2 * (text.num_hidden_layers - crossing) * text.num_key_value_heads * head
    image = 2 * 2 * crossing * adapter(config).picture_tokens * text.num_key_value_heads * head
    bench.value(case, "configuration", "parameters", parameters / 1e9, "billion")
    bench.value(case, "configuration", "cache a token", token / 2**10, "KiB")
    bench.value(case, "configuration", "cache a picture", image / 2**20, "MiB")
    moved = 2 * language + SEQUENCES * (PROMPT_TOKENS + NEW_TOKENS) * token + SEQUENCES // GROUP * image
    step = max(moved / H100_BYTES, 2 * language * SEQUENCES / H100_OPERATIONS)
    bench.value(case, "H100 floor", "bytes of a decode step", moved / 1e9, "GB")
    bench.value(case, "H100 floor", "decode step", step * 1e3, "ms")
    bench.value(case, "H100 floor", "decode_tokens_per_s", SEQUENCES / step, "tokens/s")


def whole(bench: Bench, case: str, config: MllamaConfig, device: torch.device) -> None:
    """The whole model, measured."""
    engine = engine_of(config, device)
    answer(engine, config, 0)
    runs = [answer(engine, config, turn) for turn in range(1, 4)]
    seconds = median(run.whole for run in runs)
    bench.value(case, "measured", "tokens_per_s", SEQUENCES * NEW_TOKENS / seconds, "tokens/s")
    bench.value(case, "measured", "decode step", median(run.decode_step for run in runs) * 1e3, "ms")
    bench.value(
        case, "measured", "time of the tower a picture", median(run.picture for run in runs) * 1e3, "ms"
    )
    if device.type == "cuda":
        bench.value(case, "measured", "peak GPU memory", torch.cuda.max_memory_allocated() / 2**20, "MiB")


def slices(bench: Bench, case: str, config: MllamaConfig, device: torch.device) -> None:
    """Layers at their real size, and their sum."""
    models = [cut(config, plain, cross) for plain, cross in ((1, 1), (2, 1), (1, 2))]
    engines = [engine_of(model, device) for model in models]
    series = [decode_steps(engine, requests(config, 0), STEPS) for engine in engines]
    # In turns, for a machine's speed may change from one second to the next.
    steps = list(zip(*series, strict=True))
    own = median(two - one for one, two, _ in steps)
    crossing = median(two - one for one, _, two in steps)
    rest = median(one for one, *_ in steps) - own - crossing
    text = config.text_config
    crosses = len(text.cross_attention_layers)
    step = own * (text.num_hidden_layers - crosses) + crossing * crosses + rest
    parts = {
        "self-attention layer": own,
        "cross-attention layer": crossing,
        "head, sampling, scheduling": rest,
    }
    for name, seconds in parts.items():
        bench.value(case, "measured", f"decode step, {name}", seconds * 1e3, "ms")
    bench.value(case, "added", "decode step", step * 1e3, "ms")
    bench.value(case, "added", "decode_tokens_per_s", SEQUENCES / step, "tokens/s")
    modules(bench, case, config, device)


def modules(bench: Bench, case: str, config: MllamaConfig, device: torch.device) -> None:
    """A layer of each kind forward, and forward with backward; the tower's and a training pass's sums."""
    model = random_model(cut(config, 1, 1), device)
    text, vision = config.text_config, config.vision_config
    language, tower = model.model.language_model, model.model.vision_model
    tokens = torch.randn(1, TRAINED_TOKENS, text.hidden_size, dtype=torch.bfloat16, device=device)
    states = torch.randn(
        1, adapter(config).picture_tokens, text.hidden_size, dtype=torch.bfloat16, device=device
    )
    patches = torch.randn(
        1, adapter(config).picture_tokens, vision.hidden_size, dtype=torch.bfloat16, device=device
    )
    places = torch.arange(TRAINED_TOKENS, device=device)[None]
    turned = language.rotary_emb(tokens, places)
    sides: dict[str, tuple[nn.Module, Tensor, Callable[[Tensor], Tensor], int]] = {
        "self-attention layer": (
            language.layers[0], tokens,
            lambda x: language.layers[0](x, position_ids=places, position_embeddings=turned),
            text.num_hidden_layers - len(text.cross_attention_layers),
        ),
        "cross-attention layer": (
            language.layers[1], tokens,
            lambda x: language.layers[1](
                x, cross_attention_states=states, cross_attention_mask=None, attention_mask=None,
                full_text_row_masked_out_mask=None,
            ),
            len(text.cross_attention_layers),
        ),
        "vision layer": (
            tower.transformer.layers[0], patches, lambda x: tower.transformer.layers[0](x),
            vision.num_hidden_layers + vision.num_global_layers,
        ),
        "head": (model.lm_head, tokens, lambda x: model.lm_head(x), 1),
    }  # fmt: skip
    sums = {"forward": 0.0, "forward and backward": 0.0}
    looking = 0.0
    for name, (module, x, run, count) in sides.items():
        for way in sums:
            seconds = _time(module, x, run, backward=way != "forward")
            bench.value(case, "measured", f"{name}, {len(x[0])} tokens, {way}", seconds * 1e3, "ms")
            if name == "vision layer":
                looking += seconds * count if way == "forward" else 0.0
            else:
                sums[way] += seconds * count
    bench.value(case, "added", "tower's layers a picture of four tiles", looking * 1e3, "ms")
    for way, seconds in sums.items():
        bench.value(case, "added", f"text, {TRAINED_TOKENS} tokens, {way}", seconds * 1e3, "ms")


def _time(module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor], *, backward: bool) -> float:
    found = []
    for _ in range(3):
        module.zero_grad(set_to_none=True)
        source = x.clone().requires_grad_(backward)
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            out = run(source)
        if backward:
            out.sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(threads=THREADS)
    parser.add_argument("--whole", action="store_true", help="the whole model without a GPU too")


def main() -> None:
    bench = Bench("rollout_11b", __doc__ or "", options=options)
    torch.set_num_threads(bench.args.threads)
    device = machine_device()
    config, case = configuration(bench.args.quick), f"seqs={SEQUENCES}"
    sizes(bench, case, config)
    if device.type == "cuda" or bench.args.whole:
        whole(bench, case, config, device)
    else:
        slices(bench, case, config, device)
    bench.finish()


if __name__ == "__main__":
    main()
