"""llama.cpp's batched decoding, in an environment of its own: ``python llamacpp_worker.py FILE.gguf THREADS``.

As its own llama-batched-bench does it: a prompt is encoded once for its group, each step decodes one token of every
sequence and computes all logits, and nothing is sampled: the tokens fed are arbitrary. So it is a bound, and there are
no log-probabilities.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import llama_cpp as llama
from serve import Generate, counted, serve

BATCH_TOKENS = 2048
"""Its default, and that of its bench."""
PAGE = 256
"""Lengths of a sequence's cache are multiples of this."""


class Decoder:
    """One model and, for the number of sequences at hand, one context."""

    def __init__(self, path: str, threads: int) -> None:
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path} cannot be loaded")
        self._threads = threads
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._shape = (0, 0)
        self._batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)

    def prepare(self, sequences: int, length: int) -> None:
        """An empty cache for so many sequences of so many tokens."""
        shape = (sequences, -(-length // PAGE) * PAGE)
        if shape != self._shape:
            if self._context is not None:
                llama.llama_free(self._context)
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_seq_max = shape[0] * shape[1], sequences
            params.n_batch = BATCH_TOKENS
            params.n_threads = params.n_threads_batch = self._threads
            self._context = llama.llama_init_from_model(self._model, params)
            if not self._context:
                raise RuntimeError(f"no context for {sequences} sequences of {shape[1]} tokens")
            self._shape = shape
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run (token, position, sequence, whether its logits are wanted)."""
        for start in range(0, len(rows), BATCH_TOKENS):
            part, batch = rows[start : start + BATCH_TOKENS], self._batch
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted
            status = llama.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status}")
        llama.llama_synchronize(self._context)

    def share(self, source: int, target: int) -> None:
        """Give a sequence the keys and values of another."""
        llama.llama_memory_seq_cp(llama.llama_get_memory(self._context), source, target, -1, -1)

    def run(self, request: dict[str, Any]) -> list[tuple[int, int]]:
        prompts, samples, new_tokens = request["prompts"], request["samples"], request["new_tokens"]
        sequences, length = len(prompts) * samples, len(prompts[0])
        self.prepare(sequences, length + new_tokens)
        self.decode(
            [
                (token, position, i * samples, position == length - 1)
                for i, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ]
        )
        for sequence in range(sequences):
            if sequence % samples:
                self.share(sequence - sequence % samples, sequence)
        rng = random.Random(request["seed"])
        for step in range(new_tokens - 1):  # the prompt's logits gave the first token
            tokens = rng.choices(range(self._vocabulary), k=sequences)
            self.decode([(token, length + step, sequence, True) for sequence, token in enumerate(tokens)])
        return [(new_tokens, 0)] * sequences


def load(path: str, threads: int) -> Generate:
    return Decoder(path, threads).run


if __name__ == "__main__":
    serve(lambda: counted(load(sys.argv[1], int(sys.argv[2]))))
