"""The worker's end of the line: requests as JSON lines on stdin, answers on stdout. Standard library only.

A request is ``{"prompts": [[token, ...], ...], "samples": n, "new_tokens": m, "seed": s}``: ``n`` sequences of
exactly ``m`` tokens for each prompt. The answer is ``{"tokens": [count, ...], "logprobs": [count, ...]}``, counts
of one sequence each in any order, or ``{"error": text}``. The first line a worker writes is ``{"ready": true}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]
Generate = Callable[[Request], list[tuple[int, int]]]
"""A request to the numbers of tokens and of log-probabilities of each sequence."""


def serve(load: Callable[[], Generate]) -> None:
    """Load once, then answer until stdin ends. What libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(line: dict[str, object]) -> None:
            print(json.dumps(line), file=answers, flush=True)

        generate = load()
        say({"ready": True})
        for line in sys.stdin:
            try:
                counts = generate(json.loads(line))
            except Exception as error:  # noqa: BLE001 - any failure of the peer is its answer
                say({"error": f"{type(error).__name__}: {error}"})
            else:
                say({"tokens": [n for n, _ in counts], "logprobs": [n for _, n in counts]})
