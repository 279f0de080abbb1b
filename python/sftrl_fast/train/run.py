"""``sftrl-fast train``: base, warm-up, RL arm, SFT arm, each evaluated; for every seed; stoppable at any moment.

Whatever a step draws is a function of the seed and the step's number, and sums are taken in a fixed order. So
weights, optimizer state and :class:`RunState` are all that a checkpoint needs for a run to go on bit for bit.
"""

from __future__ import annotations

import copy
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftrl_fast.algo.recipes import recipe, resolved
from sftrl_fast.algo.rewards import check_parts
from sftrl_fast.algo.sft_losses import PROXIMAL
from sftrl_fast.config import Config, load_config
from sftrl_fast.core import Observation, UserError
from sftrl_fast.evaluate import evaluate_set, load_configured, make_engine, task_env, why_not_native
from sftrl_fast.models.causal_lm import check_head
from sftrl_fast.models.forward_pass import choose_pass
from sftrl_fast.models.load import LanguageModel, save
from sftrl_fast.models.value_head import ValueHead
from sftrl_fast.runtime import checkpoint
from sftrl_fast.runtime.checkpoint import RunFolder
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.runtime.metrics import MetricsLog
from sftrl_fast.runtime.progress import Progress
from sftrl_fast.runtime.samples import write_samples
from sftrl_fast.runtime.stop import StopSignal
from sftrl_fast.tasks.seeding import digest
from sftrl_fast.train.ahead import Ahead
from sftrl_fast.train.guard import LIMIT, Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.optimizer import check as check_optimizer
from sftrl_fast.train.own_answers import Author, OwnAnswers
from sftrl_fast.train.rl import RLArm
from sftrl_fast.train.sft import Demonstrations, SFTArm
from sftrl_fast.train.state import RunState, Stage, plan


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run stands. ``stopped`` is True if a signal ended it early; ``state`` is complete otherwise."""

    folder: RunFolder
    config: Config
    state: RunState
    stopped: bool


def run(config: Config, out: Path | None, name: str) -> RunResult:
    """Do a whole run in a new folder (``out``, or ``runs/<name>-<time>``)."""
    config = config.model_copy(update={"rl": resolved(config.rl)})
    language = _load(config)
    _check(config, language)
    with RunFolder.create(out, name) as folder:
        folder.write_config(config)
        return Run(config, folder, language, RunState(_fingerprint(config))).go()


def resume(path: Path) -> RunResult:
    """Go on with the run in ``path`` from its last checkpoint, or from its start if it has none."""
    with RunFolder.open(path) as folder:
        config = load_config(file=folder.config_path)
        language = _load(config)
        if not folder.checkpoint_path.exists():
            return Run(config, folder, language, RunState(_fingerprint(config))).go()
        tensors, saved = checkpoint.load(folder.checkpoint_path)
        state = RunState.from_dict(saved)
        if state.settings != _fingerprint(config):
            raise UserError(
                f"resume={str(path)!r}: config.toml is not the one the run began with; put it back, or start a new run"
            )
        return Run(config, folder, language, state, tensors).go()


def _fingerprint(config: Config) -> int:
    return digest(config.model_dump_json())


def _load(config: Config) -> LanguageModel:
    language = load_configured(config)
    if config.model.gradient_checkpointing:
        # transformers' newer name of it, where there is one: the older one warns there.
        old = language.model.gradient_checkpointing_enable
        getattr(language.model, "activation_checkpointing_enable", old)()
        # Its hook on the embeddings is for adapters; a model with hooks is none that the kernels cover.
        language.model.disable_input_require_grads()
    return language


def _check(config: Config, language: LanguageModel) -> None:
    """Find what would fail late: an optimizer or environments that cannot be made, prompts that do not fit."""
    for arm, settings in (("warmup", config.warmup), ("sft", config.sft), ("rl", config.rl)):
        try:
            check_optimizer(language.model, settings, language.parts)
        except UserError as error:
            raise UserError(f"{arm}.{error}") from None
    for arm, sft in (("warmup", config.warmup), ("sft", config.sft)):
        if sft.loss in PROXIMAL and sft.passes < 2:
            raise UserError(
                f"{arm}.passes={sft.passes}: {sft.loss!r} needs 2 or more; with 1 it is cross_entropy"
            )
    for key, env_id in [("train", config.task.train), *config.task.eval.items()]:
        env = task_env(env_id, config.task.train_kwargs if key == "train" else config.task.env_kwargs)
        if env.num_items == 0:
            raise UserError(f"task {key}={env_id!r} holds no items")
        observation, _ = env.reset(options={"index": 0})
        shown = Observation.of(observation)
        prompt = language.chat.prompt_ids(shown.text, shown.image)
        if key == "train":
            check_head(language.model, language.chat.prompt_ids(shown.text))
            right = env.demonstration(0)
            *_, info = env.step(right if isinstance(right, str) else right[0])
            check_parts(config.rl.reward_parts, info)
        tokens = len(prompt) + config.rollout.max_new_tokens
        if tokens > language.max_context:
            raise UserError(
                f"rollout.max_new_tokens={config.rollout.max_new_tokens}: with its prompt an answer to {env_id!r} may "
                f"take {tokens} tokens and the model holds {language.max_context}"
            )


class Run:
    """A run in progress."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        language: LanguageModel,
        state: RunState,
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        self.config, self.folder, self.language, self.state = config, folder, language, state
        self.engine = make_engine(language, config)
        self.parameters = {name: p for name, p in language.model.named_parameters() if p.requires_grad}
        self.base = self._snapshot()
        self.warmup: dict[str, Tensor] = {}
        self.optimizer: Optimizer | None = None
        self.head: ValueHead | None = None
        self.guard = Guard(folder.path / "skipped", state.skipped, state.skipped_in_a_row)
        self.saved_at = time.monotonic()
        self.tokens_shown = 0
        self._optimizer_tensors: dict[str, Tensor] = {}
        self._head_tensors: dict[str, Tensor] = {}
        self.ahead: Ahead | None = None
        self._ahead_tensors: dict[str, Tensor] = {}
        if tensors is not None:
            self._restore(_part(tensors, "model/"))
            self.warmup = _part(tensors, "warmup/")
            self._optimizer_tensors = _part(tensors, "optimizer/")
            self._head_tensors = _part(tensors, "value_head/")
            self._ahead_tensors = _part(tensors, "ahead/")

    def go(self) -> RunResult:
        """Run the stages that are left."""
        stages = plan(self.config)
        with ExitStack() as stack:
            self.stop = stack.enter_context(StopSignal())
            self.log = stack.enter_context(MetricsLog(self.folder))
            self.progress = stack.enter_context(Progress())
            stack.callback(self._end_ahead)
            self.log.truncate(self.state.metrics_position)
            if not self.state.metrics_position:
                self.log.write(
                    {
                        "engine": self.engine.name,
                        "why_not_native": why_not_native(self.language),
                        "trainer": choose_pass(self.language.model),
                    }
                )
            while self.state.stage < len(stages):
                stage = stages[self.state.stage]
                finished = self._train(stage) if stage.kind == "train" else self._evaluate(stage)
                if finished:
                    self.state.stage += 1
                    self.state.step = 0
                    self.optimizer = self.head = None
                    self._end_ahead()
                self._save()
                if self.stop.requested and self.state.stage < len(stages):
                    return RunResult(self.folder, self.config, self.state, stopped=True)
        return RunResult(self.folder, self.config, self.state, stopped=False)

    def _train(self, stage: Stage) -> bool:
        """Train until the arm's end (True) or until a signal asks to stop (False)."""
        arm = self._arm(stage)
        self.tokens_shown = arm.compute.tokens
        self.progress.stage(f"{stage.name} train", self._total(stage), done=self.state.step)
        while (done := self._done(stage, arm.compute)) < 1:
            began = time.perf_counter()
            # For models with dropout; nothing of ours draws from torch's generator.
            torch.manual_seed(digest(stage.name, self.state.step))
            metrics = arm.update(self.state.step, done)
            arm.compute.seconds += time.perf_counter() - began
            self.state.step += 1
            self.state.compute[stage.name] = arm.compute.to_dict()
            self._report_step(stage, metrics, arm.compute, time.perf_counter() - began)
            self._stop_if_exhausted(stage)
            every = self.config.eval.every
            if every and stage.arm != "warmup" and self.state.step % every == 0:
                self._curve_point(stage, arm.compute)
            if self.stop.requested:
                return False
            if time.monotonic() - self.saved_at >= self.config.checkpoint.every_seconds:
                self._save()
        self.state.compute[stage.name] = arm.compute.to_dict()
        if stage.arm == "warmup":
            self.warmup = self._snapshot()
        if self.config.checkpoint.keep_arms:
            save(
                self.language.model,
                self.language.tokenizer,
                self.folder.arm_path(stage.name),
                self.language.vision,
            )
        return True

    def _stop_if_exhausted(self, stage: Stage) -> None:
        """After a checkpoint, ``UserError`` if the guard has seen enough; a resumed run gets as many tries again."""
        if self.guard.exhausted:
            self.guard.in_a_row = 0
            self._save()
            raise UserError(
                f"{stage.name}, step {self.state.step}: {LIMIT} optimizer steps in a row had a loss or gradient "
                f"that is not finite and were skipped; their batches are in {str(self.guard.folder)!r}, the weights "
                f"before them in the checkpoint. Begin anew with a lower {stage.arm}.lr or model.dtype=float32, or go "
                "on with --resume"
            )

    def _arm(self, stage: Stage) -> SFTArm | RLArm:
        """The stage's trainer, where the checkpoint left it or at its start."""
        if self.state.step == 0:
            self._restore(self.base if stage.arm == "warmup" else self.warmup)
        settings = {"warmup": self.config.warmup, "sft": self.config.sft, "rl": self.config.rl}[stage.arm]
        if stage.arm == "rl" and recipe(self.config.rl).critic:
            self.head = ValueHead(self.language.model)
        parts, head_lr = self.language.parts, self.config.rl.value_lr
        self.optimizer = Optimizer(
            self.language.model, settings, parts=parts, head=self.head, head_lr=head_lr
        )
        if self.state.step and self.head is not None:
            self.head.load_state_dict(self._head_tensors)
        if self.state.step:
            self.optimizer.load_tensors(self._optimizer_tensors)
        self.language.model.train()
        spent = self.state.compute.get(stage.name) if self.state.step else None
        compute = Compute.from_dict(spent) if spent else Compute(self.language.num_parameters)
        env = task_env(self.config.task.train, self.config.task.train_kwargs)
        assert stage.seed is not None
        if stage.arm == "rl":
            if self.config.rl.overlap:
                self.ahead = Ahead(
                    self.language, self.config, self._ahead_tensors if self.state.step else None
                )
            return RLArm(
                self.language, self._reference(), self.engine, self.optimizer, self.config, stage.seed,
                env.num_items, compute, self.guard, self.head, self.ahead,
            )  # fmt: skip
        sft = self.config.warmup if stage.arm == "warmup" else self.config.sft
        demonstrations = Demonstrations(env, self.language.chat, sft, stage.name)
        if sft.data == "self":
            begun = self._frozen(self.base if stage.arm == "warmup" else self.warmup)
            author = Author(replace(self.language, model=begun), self.config, compute)
            demonstrations = OwnAnswers(env, author, sft, stage.name)
        return SFTArm(
            self.language, demonstrations, self.optimizer, self.config.compute.micro_batch_tokens, compute,
            self.guard,
        )  # fmt: skip

    def _end_ahead(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def _reference(self) -> Any:
        """The frozen warm-up model, or None if no KL term needs it."""
        return self._frozen(self.warmup) if self.config.rl.kl else None

    def _frozen(self, tensors: dict[str, Tensor]) -> Any:
        """A copy of the model with these weights, which no training changes."""
        frozen = copy.deepcopy(self.language.model).eval().requires_grad_(False)
        with torch.no_grad():
            for name, tensor in tensors.items():
                frozen.get_parameter(name).copy_(tensor)
        return frozen

    def _done(self, stage: Stage, spent: Compute) -> float:
        """The share of the arm that lies behind: of its steps, or for SFT of what the RL arm spent."""
        if stage.arm == "sft":
            budget = Compute.from_dict(self.state.compute[f"seed{stage.seed}/rl"])
            axis = self.config.compute.match
            return spent.axis(axis) / budget.axis(axis) if budget.axis(axis) else 1.0
        total = self._total(stage)
        return self.state.step / total if total else 1.0

    def _total(self, stage: Stage) -> int | None:
        """Steps of the stage; None where the compute spent decides."""
        return {"warmup": self.config.warmup.steps, "rl": self.config.rl.updates}.get(stage.arm)

    def _evaluate(self, stage: Stage) -> bool:
        self.progress.stage(f"{stage.name} eval {stage.set}", 1, unit="set")
        evaluation = self._evaluation(stage.set)
        self.state.evaluations.setdefault(stage.name, {})[stage.set] = "".join(
            "1" if success else "0" for success in evaluation.successes
        )
        self.state.questions[stage.set] = evaluation.questions
        rate = sum(evaluation.successes) / len(evaluation.successes)
        entry = {**_where(stage), "set": stage.set, "n": len(evaluation.successes), "rate": rate,
                 "attempts": evaluation.attempts, "accuracy": evaluation.accuracy,
                 "first_try": evaluation.first_try}  # fmt: skip
        if evaluation.recognition is not None:
            entry["recognition"] = evaluation.recognition
        self.state.rates.setdefault(stage.name, {})[stage.set] = evaluation.rates
        self.log.write(entry)
        name = f"{stage.name.replace('/', '-')}-{stage.set}"
        write_samples(self.folder.path / "samples", name, evaluation.samples, self.language.chat.decode)
        self.progress.advance(rate=rate)
        return True

    def _evaluation(self, set_name: str) -> Any:
        return evaluate_set(
            self.engine, self.language.chat, self.config.task.eval[set_name], self.config,
            max_context=self.language.max_context,
        )  # fmt: skip

    def _curve_point(self, stage: Stage, spent: Compute) -> None:
        for name in self.config.task.eval:
            evaluation = self._evaluation(name)
            rate = sum(evaluation.successes) / len(evaluation.successes)
            point = {"arm": stage.arm, "seed": stage.seed, "step": self.state.step, "flops": spent.flops}
            self.state.curve.append({**point, "set": name, "rate": rate})
            self.log.write({**_where(stage), "step": self.state.step, f"eval/{name}": rate})

    def _report_step(self, stage: Stage, metrics: dict[str, float], spent: Compute, seconds: float) -> None:
        totals = {"samples": spent.samples, "tokens": spent.tokens, "flops": spent.flops}
        self.log.write({**_where(stage), "step": self.state.step, **metrics, **totals, "seconds": seconds})
        shown = {key: metrics[key] for key in ("loss", "reward", "success") if key in metrics}
        before, self.tokens_shown = self.tokens_shown, spent.tokens
        self.progress.advance(tokens=spent.tokens - before, share=min(1.0, self._done(stage, spent)), **shown)

    def _save(self) -> None:
        self.state.metrics_position = self.log.position
        self.state.skipped, self.state.skipped_in_a_row = self.guard.skipped, self.guard.in_a_row
        tensors = {f"model/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= {f"warmup/{name}": tensor for name, tensor in self.warmup.items()}
        if self.optimizer is not None:
            tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.tensors().items()}
        if self.head is not None:
            tensors |= {f"value_head/{name}": tensor for name, tensor in self.head.state_dict().items()}
        if self.ahead is not None:
            tensors |= {f"ahead/{name}": tensor for name, tensor in self.ahead.tensors().items()}
        checkpoint.save(self.folder.checkpoint_path, tensors, self.state.to_dict())
        self.saved_at = time.monotonic()

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])


def _where(stage: Stage) -> dict[str, Any]:
    """The columns of ``metrics.jsonl`` that say whose numbers these are."""
    return {"stage": stage.arm} if stage.seed is None else {"seed": stage.seed, "stage": stage.arm}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
