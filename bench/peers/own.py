"""The sides that run in this project's environment: our engine, our backend over ``generate``, transformers' two."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from harness import machine_device
from sftrl_fast.models.load import load
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import Engine, Request, RequestKey, SamplingParams

if TYPE_CHECKING:
    from peers.serve import Generate

MAX_SEQUENCES = 128
CACHE_BLOCKS = MAX_SEQUENCES + 32
"""Blocks of 256 tokens, one a sequence and prompt, for transformers' continuous batching; by default it takes 60 % of
the machine's memory."""
BATCH_TOKENS = 2048


def native(model: PreTrainedModel) -> Engine:
    return NativeEngine(model, frozenset(), max_sequences=MAX_SEQUENCES)


def hf_backend(model: PreTrainedModel) -> Engine:
    return HFBackend(model, frozenset(), 0, max_sequences=MAX_SEQUENCES)


def through_engine(engine: Engine) -> Generate:
    """No token stops an answer: the engine was given none."""

    def run(request: dict[str, Any]) -> list[tuple[int, int]]:
        requests = [
            Request(list(prompt), RequestKey(request["seed"], 0, prompt=i, sample=j, turn=0))
            for i, prompt in enumerate(request["prompts"])
            for j in range(request["samples"])
        ]
        completions = engine.generate(requests, SamplingParams(max_new_tokens=request["new_tokens"]))
        return [(len(c.token_ids), len(c.logprobs)) for c in completions]

    return run


def hf(model: PreTrainedModel) -> Generate:
    """``generate`` on prompts of one length, so without padding; log-probabilities from the logits it returns."""
    model.generation_config = GenerationConfig()  # no stop token, no settings that came with the weights

    def run(request: dict[str, Any]) -> list[tuple[int, int]]:
        ids = torch.tensor(request["prompts"], device=model.device)
        torch.manual_seed(request["seed"])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=request["new_tokens"],
            num_return_sequences=request["samples"],
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        drawn = out.sequences[:, ids.shape[1] :]
        columns = [
            logits.float().log_softmax(-1).gather(1, drawn[:, t, None]) for t, logits in enumerate(out.logits)
        ]
        logprobs = torch.cat(columns, dim=1).tolist()
        return [(len(tokens), len(row)) for tokens, row in zip(drawn.tolist(), logprobs, strict=True)]

    return run


def hf_cb(model: PreTrainedModel) -> Generate:
    """Continuous batching; its manager and cache are made once for each number of samples and kept."""
    from transformers import ContinuousBatchingConfig  # not in every transformers 5

    settings = ContinuousBatchingConfig(
        num_blocks=CACHE_BLOCKS, max_batch_tokens=BATCH_TOKENS, return_logprobs=True, seed=0
    )
    samples_kept: list[int] = []

    def run(request: dict[str, Any]) -> list[tuple[int, int]]:
        samples = request["samples"]
        if samples_kept != [samples]:
            model.destroy_cached_continuous_batching_manager()
            samples_kept[:] = [samples]
        sampling = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=-1,
            num_return_sequences=samples,
            max_new_tokens=request["new_tokens"],
        )
        answers = model.generate_batch(
            request["prompts"], sampling, continuous_batching_config=settings, persistent_manager=True
        )
        errors = [answer.error for answer in answers.values() if answer.error]
        if errors:
            raise RuntimeError(errors[0])
        return [(len(answer.generated_tokens), len(answer.logprobs)) for answer in answers.values()]

    return run


SIDES: dict[str, Callable[[PreTrainedModel], Generate]] = {
    "native": lambda model: through_engine(native(model)),
    "hf_backend": lambda model: through_engine(hf_backend(model)),
    "hf": hf,
    "hf_cb": hf_cb,
}


def make(side: str, model: str, threads: int) -> Generate:
    """The side, ready, on bfloat16 weights."""
    torch.set_num_threads(threads)
    loaded = load(model, dtype="bfloat16", device=str(machine_device())).model.eval()
    generate = SIDES[side](loaded)

    def run(request: dict[str, Any]) -> list[tuple[int, int]]:
        with torch.no_grad():
            return generate(request)

    return run


def main() -> None:
    from serve import counted, serve  # beside this script

    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    serve(lambda: counted(make(args.side, args.model, args.threads)))


if __name__ == "__main__":
    main()
