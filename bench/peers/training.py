"""What the workers of ``bench_train_step.py`` have in common: the work asked for, and how it is measured.

A request is ``{"work": name, "prompts": [[token, ...], ...], "answers": [[token, ...], ...]}``. ``update``
trains by GRPO on the answers given, 8 in a row to a prompt; ``step`` draws as many of its own, as long as the first,
and trains on those; ``sft`` trains on the answers as demonstrations, one to a prompt. The answer is ``{"seconds": s,
"peak": bytes}``, the peak above what the process held once the weights were loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from harness import resident_after_reset, status_bytes

GROUP = 8
LEARNING_RATE = 1e-6


def reward(answer: Sequence[int]) -> float:
    """The share of odd tokens: as good as any, and seldom the same within a group."""
    return sum(token % 2 for token in answer) / len(answer)


class Meter:
    """Time and memory of one piece of work at a time: the GPU's memory where there is one, else the process's."""

    def __init__(self) -> None:
        """``base``: bytes now, with the weights and nothing else."""
        self.on_gpu = torch.cuda.is_available()
        self.base = torch.cuda.memory_allocated() if self.on_gpu else status_bytes("VmRSS", "self")
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        yield
        self.stop()

    def start(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            resident_after_reset("self")
        self._began = time.perf_counter()

    def stop(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began

    def answer(self) -> dict[str, object]:
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else status_bytes("VmHWM", "self")
        return {"seconds": self.seconds, "peak": max(0, peak - self.base)}
