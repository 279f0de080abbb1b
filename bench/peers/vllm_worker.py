"""vLLM on the CPU, in an environment of its own: ``python vllm_worker.py FOLDER THREADS``.

Prefix caching stays on, as it is by default: it is how vLLM shares a prompt among its samples. No prompt comes twice.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from serve import Generate, counted, serve

CACHE_GIB = 1
"""Keys and values of 128 sequences of 194 tokens take 0.6; the default takes a share of the machine."""
MAX_SEQUENCES = 128
MAX_LENGTH = 512


def load(folder: str, threads: int) -> Generate:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    # Set before the import, which reads them. By default it would leave a core to other work.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GIB)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=MAX_LENGTH,
        max_num_seqs=MAX_SEQUENCES,
    )

    def run(request: dict[str, Any]) -> list[tuple[int, int]]:
        sampling = SamplingParams(
            n=request["samples"],
            temperature=1.0,
            max_tokens=request["new_tokens"],
            ignore_eos=True,
            logprobs=0,  # the drawn token's alone
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        return [(len(c.token_ids), len(c.logprobs)) for out in outputs for c in out.outputs]

    return run


if __name__ == "__main__":
    serve(lambda: counted(load(sys.argv[1], int(sys.argv[2]))))
