"""This package's side of ``bench_train_step.py``: ``python own_training.py grpo|sft MODEL THREADS``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from serve import Answer, serve
from serve import Request as Work
from training import GROUP, LEARNING_RATE, Meter, reward

from harness import machine_device
from sftrl_fast.config import load_config
from sftrl_fast.core import Episode, Group, Row, Turn, Verdict
from sftrl_fast.models.load import LanguageModel, load
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.request import Completion, Request, RequestKey, SamplingParams
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.train.guard import Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.pack import episode_rows
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.sample import Batch
from sftrl_fast.train.score import score
from sftrl_fast.train.sft import cross_entropy_step

MAX_SEQUENCES = 128
MICRO_BATCH_TOKENS = {"grpo": 2048, "sft": 1024}
"""At least as much as the other side's: 8 rows of 190 tokens, and a pack of 1,024."""


class Arm(RLArm):
    """An RL arm whose episodes are one answer each, to prompts of tokens instead of a task's."""

    groups: list[Group]

    def _rollout(self, step: int) -> Batch:
        return Batch(self.groups or self.sampled(step), 0, Compute(self.language.num_parameters))

    def ask(self, prompts: list[list[int]], length: int) -> None:
        """Have the next update answer ``prompts`` itself."""
        self.groups, self.prompts, self.length = [], prompts, length

    def sampled(self, step: int) -> list[Group]:
        requests = [
            Request(prompt, RequestKey(0, step, i, sample, 0))
            for i, prompt in enumerate(self.prompts)
            for sample in range(GROUP)
        ]
        done = self.engine.generate(requests, SamplingParams(self.length))
        return grouped(self.prompts, done, GROUP)


def grouped(prompts: list[list[int]], answers: list[Completion], samples: int) -> list[Group]:
    """A group a prompt; ``samples`` answers in a row are its."""
    groups = []
    for i, prompt in enumerate(prompts):
        episodes = []
        for sample, answer in enumerate(answers[i * samples : (i + 1) * samples]):
            ids = answer.token_ids
            turn = Turn(prompt, ids, answer.logprobs, "", False, verdict(ids))
            episodes.append(Episode(i, sample, [turn]))
        groups.append(Group(i, episodes))
    return groups


def verdict(answer: list[int]) -> Verdict:
    return Verdict(reward(answer), outcome=0, success=False, message="")


def given(work: Work, language: LanguageModel, max_tokens: int) -> list[Group]:
    """The request's answers as if the engine had drawn them, with the log-probabilities they have now."""
    answers = [Completion(ids, [0.0] * len(ids), [0.0] * len(ids), False) for ids in work["answers"]]
    groups = grouped(work["prompts"], answers, GROUP)
    known = iter(score(language.model, None, episode_rows(groups), max_tokens).logprobs)
    for episode in (episode for group in groups for episode in group.episodes):
        episode.turns = [replace(turn, logprobs=next(known)) for turn in episode.turns]
    return groups


def grpo(language: LanguageModel, meter: Meter) -> Callable[[Work], Answer]:
    config = load_config(
        overrides={
            "rl.recipe": "grpo",
            "rl.lr": LEARNING_RATE,
            "rl.group": GROUP,
            "compute.micro_batch_tokens": MICRO_BATCH_TOKENS["grpo"],
        }
    )
    arm = Arm(
        language,
        None,
        NativeEngine(language.model, frozenset(), max_sequences=MAX_SEQUENCES),
        Optimizer(language.model, config.rl),
        config,
        seed=0,
        num_items=1,
        compute=Compute(sum(p.numel() for p in language.model.parameters())),
        guard=Guard(Path(tempfile.gettempdir()) / "bench_train_step"),
    )
    steps = count()

    def run(work: Work) -> Answer:
        if work["work"] == "update":
            arm.groups = given(work, language, MICRO_BATCH_TOKENS["grpo"])
        else:
            arm.ask(work["prompts"], len(work["answers"][0]))
        with meter.running():
            metrics = arm.update(next(steps), 0.0)
        if metrics["skipped"] or not metrics["trained_rows"]:
            raise RuntimeError(f"the update was not taken: {metrics}")
        return meter.answer()

    return run


def sft(language: LanguageModel, meter: Meter) -> Callable[[Work], Answer]:
    config = load_config(overrides={"sft.lr": LEARNING_RATE})
    optimizer = Optimizer(language.model, config.sft)

    def run(work: Work) -> Answer:
        rows = [
            Row(prompt + answer, [False] * len(prompt) + [True] * len(answer), prompt=len(prompt))
            for prompt, answer in zip(work["prompts"], work["answers"], strict=True)
        ]
        with meter.running():
            cross_entropy_step(language.model, rows, MICRO_BATCH_TOKENS["sft"])
            optimizer.step(0.0)
        return meter.answer()

    return run


def make(kind: str, model: str, threads: int) -> Callable[[Work], Answer]:
    torch.set_num_threads(threads)
    language = load(model, dtype="bfloat16", device=str(machine_device()))
    language.model.train()
    return {"grpo": grpo, "sft": sft}[kind](language, Meter())


if __name__ == "__main__":
    serve(lambda: make(sys.argv[1], sys.argv[2], int(sys.argv[3])))
