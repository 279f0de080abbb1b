"""The worker's end of the line: requests as JSON lines on stdin, answers on stdout. Standard library only.

Each answer is an object, ``{"error": text}`` if the request failed. A worker first writes ``{"ready": true}``.
A request to generate is ``{"prompts": [[token, ...], ...], "samples": n, "new_tokens": m, "seed": s}``: ``n`` sequences
of exactly ``m`` tokens for each prompt. Its answer is ``{"tokens": [count, ...], "logprobs": [count, ...]}``, counts of
one sequence each in any order.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]
Answer = dict[str, object]
Generate = Callable[[Request], list[tuple[int, int]]]
"""A request to the numbers of tokens and of log-probabilities of each sequence."""


def counted(generate: Generate) -> Callable[[Request], Answer]:
    """``generate`` with its answer in the words of the protocol."""

    def run(request: Request) -> Answer:
        counts = generate(request)
        return {"tokens": [n for n, _ in counts], "logprobs": [n for _, n in counts]}

    return run


def serve(load: Callable[[], Callable[[Request], Answer]]) -> None:
    """Load once, then answer until stdin ends. What libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(line: dict[str, object]) -> None:
            print(json.dumps(line), file=answers, flush=True)

        handle = load()
        say({"ready": True})
        for line in sys.stdin:
            try:
                answer = handle(json.loads(line))
            except Exception as error:  # noqa: BLE001 - any failure of the peer is its answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            say(answer)
