"""Every key of a training run: typed, checked, with its unit and default. An unknown key is an error.

A run's settings come from, in rising order: the defaults here, a TOML file or shipped preset, ``--section.key
value`` on the command line. The resolved copy is written into the run folder.
"""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from sftrl_fast.core import UserError

MAX_SEED = 2**63 - 1
"""The largest integer that TOML promises to keep."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(
        "tiny", description="`tiny`, `smollm2-135m`, a local Hugging Face folder, or `hub:OWNER/NAME`"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights and of the arithmetic"
    )
    device: str = Field("auto", description="`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:N`")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")


class TaskConfig(Section):
    train: str = Field("sftrl/points-text-train-v1", description="environment id whose items are trained on")
    eval: dict[str, str] = Field(
        {
            "id_seen": "sftrl/points-text-seen-v1",
            "id": "sftrl/points-text-id-v1",
            "rule_ood": "sftrl/points-text-rule-ood-v1",
        },
        min_length=1,
        description="evaluation sets: name to environment id; each item is answered once, greedily",
    )
    verify_iter: int = Field(5, ge=1, description="answers an episode may try, in training and in evaluation")
    options: dict[str, str | int | float | bool] = Field(
        {}, description="further keyword arguments of the environments, e.g. rewards, target"
    )

    @field_validator("options")
    @classmethod
    def _turns_have_their_own_key(
        cls, options: dict[str, str | int | float | bool]
    ) -> dict[str, str | int | float | bool]:
        if "verify_iter" in options:
            raise ValueError("must not hold verify_iter; set task.verify_iter")
        return options

    @property
    def env_kwargs(self) -> dict[str, Any]:
        return {"verify_iter": self.verify_iter, **self.options}


class OptimizerConfig(Section):
    lr: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's two decay rates")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this L2 norm")
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps over which the rate rises linearly from 0"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the rate after `warmup_steps`"
    )

    @field_validator("betas")
    @classmethod
    def _betas_are_decay_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("must be two numbers of at least 0 and below 1")
        return betas


class PretrainConfig(Section):
    """`sftrl-fast pretrain`. The defaults are the recipe of the shipped ``tiny`` model."""

    corpus: str = Field("points", description="dialogue stream to train on")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the dialogues and of the initial weights")
    steps: int = Field(1500, ge=1, description="optimizer steps")
    batch: int = Field(256, ge=1, description="dialogues an optimizer step")
    micro_batch_tokens: int = Field(
        2048, ge=1, description="tokens, padding included, pushed through the model at once"
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=100, schedule="cosine"
    )


class SFTConfig(OptimizerConfig):
    """The SFT arm; how long it trains is `compute.match`'s to say."""

    batch: int = Field(64, ge=1, description="demonstrations an optimizer step")
    resample: bool = Field(
        False, description="draw a new solution for an item at each visit, not one for good"
    )


class WarmupConfig(SFTConfig):
    """The SFT before both arms."""

    steps: int = Field(100, ge=0, description="optimizer steps")


class RLConfig(OptimizerConfig):
    recipe: str = Field("grpo", description="row of the algorithm table: grpo, dr_grpo, rloo")
    updates: int = Field(40, ge=0, description="batches of episodes generated and trained on")
    prompts: int = Field(32, ge=1, description="items a batch")
    group: int = Field(16, ge=2, description="episodes of each item, G")
    epochs: int = Field(1, ge=1, description="passes over each batch of episodes")
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the rollouts")
    clip_low: float = Field(0.2, ge=0, lt=1, description="the ratio is clipped below at 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="the ratio is clipped above at 1 + clip_high")
    kl: float = Field(
        0.0, ge=0, description="weight of the KL divergence to the warm-up model; 0 runs no reference"
    )

    @field_validator("minibatches")
    @classmethod
    def _no_minibatch_is_empty(cls, minibatches: int, info: ValidationInfo) -> int:
        episodes = info.data.get("prompts", 0) * info.data.get("group", 0)
        if episodes and minibatches > episodes:
            raise ValueError(f"must be at most prompts x group = {episodes}")
        return minibatches


class RolloutConfig(Section):
    max_new_tokens: int = Field(64, ge=1, description="tokens an answer may have")
    max_sequences: int = Field(512, ge=1, description="sequences generated together")
    backend: Literal["auto", "native", "hf"] = Field(
        "auto",
        description="`native`: the engine of this package; `hf`: transformers' generate, for any model; `auto`: native "
        "for the models it knows",
    )
    cache_tokens: int = Field(
        0,
        ge=0,
        description="tokens whose keys and values the native engine keeps; sequences beyond wait. 0: 512 a sequence, "
        "or the model's whole context if that is more, up to 16384; on a GPU at most half of its free memory",
    )


class EvalConfig(Section):
    limit: int = Field(0, ge=0, description="items a set, a fixed stratified subset; 0 takes every item")
    every: int = Field(
        0,
        ge=0,
        description="also evaluate each arm every so many optimizer steps (SFT) or updates (RL); 0 only at its end",
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of every interval")


class ComputeConfig(Section):
    match: Literal["flops", "tokens", "samples", "seconds"] = Field(
        "flops",
        description="what the SFT arm may spend as much of as the RL arm did; `seconds` makes no two runs equal",
    )
    micro_batch_tokens: int = Field(
        16384, ge=1, description="tokens, padding included, pushed through the model at once in training"
    )


class CheckpointConfig(Section):
    every_seconds: float = Field(
        60.0, ge=0, description="least time between two checkpoints; 0 saves after every step"
    )
    keep_arms: bool = Field(True, description="keep each arm's final weights in the run folder")


class Config(Section):
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="seeds of data order and sampling; each runs all stages"
    )
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    warmup: WarmupConfig = WarmupConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    rollout: RolloutConfig = RolloutConfig()
    eval: EvalConfig = EvalConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("seeds")
    @classmethod
    def _seeds_are_counts_and_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError("must be whole numbers from 0 to 2^63 - 1")
        if len(set(seeds)) != len(seeds):
            raise ValueError("must name each seed once")
        return seeds


def preset_for(model: str) -> str | None:
    """The shipped preset that is made for a model, None for a model without one."""
    return next((name for name in presets() if load_config(preset=name).model.name == model), None)


def presets() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("sftrl_fast") / "configs"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_config(
    *, preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The resolved settings of a training run.

    A table in a file is laid over the defaults key by key; only an open table (``task.eval``,
    ``task.options``) takes the place of its default. ``overrides`` maps dotted keys to values of the key's type,
    or strings that can be read as one; they come last and may add to an open table (``task.eval.extra``).
    Raises ``UserError`` naming the key, the value and what would be right.
    """
    layers: list[Mapping[str, Any]] = []
    if preset is not None:
        if preset not in presets():
            raise UserError(f"preset={preset!r} is unknown; choose one of {', '.join(presets())}")
        text = (resources.files("sftrl_fast") / "configs" / f"{preset}.toml").read_text("utf-8")
        layers.append(tomllib.loads(text))
    if file is not None:
        layers.append(_read_toml(file))
    return resolve(Config, layers, overrides or {})


S = TypeVar("S", bound=Section)


def resolve(kind: type[S], layers: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]) -> S:
    """The defaults of ``kind`` under ``layers`` under ``overrides``, checked; see :func:`load_config`."""
    data = kind().model_dump()
    for layer in layers:
        data = _overlay(kind, data, layer)
    for key, value in overrides.items():
        data = _merge(data, _nest(key, value))
    try:
        return kind.model_validate(data)
    except ValidationError as fault:
        raise UserError(_explain(kind, fault)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as fault:
        raise UserError(f"config={str(file)!r} cannot be read: {fault.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UserError(f"config={str(file)!r} is not valid TOML: {fault}") from None


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _overlay(kind: type[Section], base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, descending into sections only."""
    merged = dict(base)
    for key, value in top.items():
        inner = subsection(kind, key)
        merged[key] = _overlay(inner, base[key], value) if inner and isinstance(value, Mapping) else value
    return merged


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, descending into every table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def subsection(kind: type[Section], key: str) -> type[Section] | None:
    """The class of the section that ``kind`` holds under ``key``; None for a value or an unknown key."""
    field = kind.model_fields.get(key)
    annotation = None if field is None else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _explain(kind: type[Section], fault: ValidationError) -> str:
    """One line: the first fault of each key, since a value that fits no member of a union has several."""
    lines: dict[str, str] = {}
    for error in fault.errors(include_url=False):
        section, depth = kind, 0
        while depth < len(error["loc"]) and (inner := subsection(section, str(error["loc"][depth]))):
            section, depth = inner, depth + 1
        union = error["type"].endswith("_type") and error["loc"][-1] in ("str", "int", "float", "bool")
        key = ".".join(str(part) for part in (error["loc"][:-1] if union else error["loc"])) or "settings"
        if error["type"] == "extra_forbidden":
            line = f"{key} is not a key; the keys there are {', '.join(section.model_fields)}"
        else:
            reason = "must be a string, a number or a boolean" if union else _plain(error["msg"])
            line = f"{key}={reprlib.repr(error['input'])}: {reason}"
        lines.setdefault(key, line)
    return "; ".join(lines.values())


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
