"""TRL's side of ``bench_train_step.py``: ``python trl_worker.py grpo|sft FOLDER THREADS [checkpointing]``.

Its trainers run as their users run them; a callback holds them before each optimizer step until one is asked for. All
in bfloat16 without autocast, as on this package's side. By default TRL recomputes activations, which is slower and
smaller; here only with ``checkpointing``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Any

import torch
from datasets import Dataset
from serve import Answer, serve
from serve import Request as Work
from training import GROUP, LEARNING_RATE, Meter, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from harness import machine_device

MICRO_BATCH = 8
"""TRL's default."""
PACK_TOKENS = 1024
"""TRL's default length of a packed row."""
FOREVER = 1_000_000


class Gate(TrainerCallback):  # type: ignore[misc]
    """Lets a trainer take one optimizer step at a time, and measures it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.asked: Queue[None] = Queue()
        self.done: Queue[BaseException | None] = Queue()

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.asked.get()
        self.meter.start()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.meter.stop()
        self.done.put(None)

    def run(self, train: Callable[[], object]) -> None:
        """``train`` in a thread; what ends it is raised by the next :meth:`step`."""

        def guarded() -> None:
            try:
                train()
            except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for the step
                self.done.put(error)

        Thread(target=guarded, daemon=True).start()

    def step(self) -> Answer:
        self.asked.put(None)
        fault = self.done.get()
        if fault is not None:
            raise fault
        return self.meter.answer()


class TokenGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """Prompts are tokens, named by their place in the request; answers are given, or generated as ever."""

    work: Work

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self.places = [int(prompt) for prompt in prompts]
        return [self.work["prompts"][place] for place in self.places], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **options: Any) -> Any:
        if self.work["work"] == "step":
            return super()._generate_single_turn(prompt_ids, *args, **options)
        seen = [self.places[:i].count(place) for i, place in enumerate(self.places)]
        answers = self.work["answers"]
        return [answers[place * GROUP + nth] for place, nth in zip(self.places, seen, strict=True)], None


def common(kind: type, checkpointing: bool, **own: Any) -> Any:
    return kind(
        output_dir=tempfile.mkdtemp(prefix="bench_trl_"),
        use_cpu=machine_device().type == "cpu",
        bf16=False,
        learning_rate=LEARNING_RATE,
        gradient_checkpointing=checkpointing,
        max_steps=FOREVER,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **own,
    )


def grpo(
    model: PreTrainedModel, tokenizer: Any, meter: Meter, checkpointing: bool
) -> Callable[[Work], Answer]:
    """The trainer is made with the first request, which says how many prompts and tokens there are."""
    gate = Gate(meter)
    made: list[TokenGRPOTrainer] = []

    def make(work: Work) -> TokenGRPOTrainer:
        prompts, length = len(work["prompts"]), len(work["answers"][0])
        args = common(
            GRPOConfig,
            checkpointing,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=prompts * GROUP // MICRO_BATCH,
            num_generations=GROUP,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            beta=0.0,
            loss_type="grpo",
        )
        return TokenGRPOTrainer(
            model,
            reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(prompts)]}),
            processing_class=tokenizer,
            callbacks=[gate],
        )

    def run(work: Work) -> Answer:
        first = not made
        if first:
            made.append(make(work))
        made[0].work = work
        if first:
            gate.run(made[0].train)
        return gate.step()

    return run


def sft(
    model: PreTrainedModel, tokenizer: Any, meter: Meter, checkpointing: bool
) -> Callable[[Work], Answer]:
    """All steps train on the first request's rows: TRL packs its data once, ahead of the first step."""
    gate = Gate(meter)
    made: list[SFTTrainer] = []

    def make(work: Work) -> SFTTrainer:
        pairs = list(zip(work["prompts"], work["answers"], strict=True))
        rows = Dataset.from_dict(
            {
                "input_ids": [prompt + answer for prompt, answer in pairs],
                "completion_mask": [[0] * len(prompt) + [1] * len(answer) for prompt, answer in pairs],
            }
        )
        packs = -(-len(pairs) // (PACK_TOKENS // len(rows[0]["input_ids"])))
        args = common(
            SFTConfig,
            checkpointing,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=packs,
            packing=True,
            max_length=PACK_TOKENS,
            completion_only_loss=True,
        )
        return SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[gate])

    def run(work: Work) -> Answer:
        if not made:
            made.append(make(work))
            gate.run(made[0].train)
        return gate.step()

    return run


def load(kind: str, folder: str, threads: int, checkpointing: bool) -> Callable[[Work], Answer]:
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(machine_device())
    return {"grpo": grpo, "sft": sft}[kind](model, tokenizer, Meter(), checkpointing)


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1], sys.argv[2], int(sys.argv[3]), "checkpointing" in sys.argv[4:]))
