"""Every key of a training run: typed, checked, with its unit and default. An unknown key is an error.

A run's settings come from, in rising order: the defaults here, a TOML file or shipped preset, ``--section.key
value`` on the command line. The resolved copy is written into the run folder.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MAX_SEED = 2**63 - 1
"""The largest integer that TOML promises to keep."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(
        "tiny",
        description="`tiny`, `tiny-image`, `tiny-nav`, `tiny-nav-image`, `smollm2-135m`, a local Hugging Face "
        "folder, or `hub:OWNER/NAME`",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights and of the arithmetic"
    )
    device: str = Field("auto", description="`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:N`")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    freeze: tuple[Literal["vision", "projector", "language"], ...] = Field(
        (), description="parts of a vision-language model that no training changes; not all of them"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")


class LoraConfig(Section):
    """Low-rank adapters, trained by every arm in the place of the weights."""

    rank: int = Field(0, ge=0, description="rank of each adapter; 0 trains the weights themselves")
    alpha: float = Field(32.0, gt=0, description="an adapter's product is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        (),
        description="names of the linear layers that get one, e.g. q_proj, v_proj; empty: all but the output embedding",
    )


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
        {}, description="further keyword arguments of the environments, e.g. rewards, target, reasoning"
    )

    train_options: dict[str, str | int | float | bool] = Field(
        {},
        description="the same for training alone, laid over options: e.g. phrasing, for a task in several wordings",
    )

    @field_validator("options", "train_options")
    @classmethod
    def _turns_have_their_own_key(
        cls, options: dict[str, str | int | float | bool]
    ) -> dict[str, str | int | float | bool]:
        if "verify_iter" in options:
            raise ValueError("must not hold verify_iter; set task.verify_iter")
        return options

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the evaluation environments."""
        return {"verify_iter": self.verify_iter, **self.options}

    @property
    def train_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the training environment."""
        return {**self.env_kwargs, **self.train_options}


class OptimizerConfig(Section):
    lr: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    vision_lr: float | None = Field(
        None, gt=0, description="with pictures: that of the vision tower; unset, lr"
    )
    projector_lr: float | None = Field(
        None, gt=0, description="with pictures: that of what maps the tower to the language; unset, lr"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's two decay rates")
    eps: float = Field(1e-8, gt=0, description="AdamW's term for numerical stability")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this L2 norm")
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps over which the rate rises linearly from 0"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the rate after `warmup_steps`"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="`adamw`: torch's; `adamw_8bit`: bitsandbytes', whose moments take a quarter"
    )
    master_weights: bool = Field(
        False,
        description="bfloat16: steps are taken on float32 copies of the weights, where small ones add up",
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
    start: str = Field("tiny", description="with pictures: the text model that is given sight")
    reading_steps: int = Field(
        1000,
        ge=0,
        description="with pictures: optimizer steps of the vision tower alone, ahead of the dialogues",
    )
    reading_batch: int = Field(64, ge=1, description="with pictures: pictures each of those steps")
    keep_text: bool = Field(
        False,
        description="with pictures: leave the text model's own weights as they are, and so its answers to text",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the dialogues and of the initial weights")
    steps: int = Field(1500, ge=1, description="optimizer steps")
    batch: int = Field(256, ge=1, description="dialogues an optimizer step")
    step_tokens: int = Field(
        0, ge=0, description="tokens an optimizer step, in place of `batch`; 0 counts dialogues"
    )
    micro_batch_tokens: int = Field(2048, ge=1, description="tokens pushed through the model at once")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=100, schedule="cosine"
    )


class SFTConfig(OptimizerConfig):
    """The SFT arm; how long it trains is `compute.match`'s to say."""

    batch: int = Field(64, ge=1, description="demonstrations an optimizer step")
    data: Literal["expert", "self"] = Field(
        "expert",
        description="whose right answers are shown: the expert's, or those of the model as the arm finds it, sampled "
        "and verified (rejection sampling), which the compute ledger counts",
    )
    tries: int = Field(8, ge=1, description="self: answers sampled at each visit to an item")
    temperature: float = Field(1.0, gt=0, description="self: their sampling temperature")
    resample: bool = Field(
        False,
        description="expert: draw a new solution for an item at each visit, not one for good; self always does",
    )
    loss: Literal["cross_entropy", "dft", "psft"] = Field(
        "cross_entropy",
        description="row of the SFT table: plain, weighted by the token's own probability (dft), or clipped near the "
        "weights that the batch began with (psft)",
    )
    passes: int = Field(1, ge=1, description="optimizer steps on each batch; psft needs 2 or more")
    clip: float = Field(0.2, ge=0, description="psft: the ratio is clipped above at 1 + clip")


class WarmupConfig(SFTConfig):
    """The SFT before both arms."""

    steps: int = Field(100, ge=0, description="optimizer steps")


class RLConfig(OptimizerConfig):
    """Keys that are unset take the recipe's own value; a run's ``config.toml`` says which."""

    recipe: str = Field(
        "grpo",
        description="row of the algorithm table: ppo, grpo, dr_grpo, dapo, gdpo, gspo, rloo, reinforce_pp, cispo; with "
        "demonstrations beside the samples luffy, chord, chord_phi",
    )
    updates: int = Field(40, ge=0, description="batches of episodes generated and trained on")
    prompts: int = Field(32, ge=1, description="items a batch")
    group: int = Field(16, ge=1, description="episodes of each item, G")
    epochs: int | None = Field(None, ge=1, description="passes over each batch of episodes; ppo 4, else 1")
    overlap: bool = Field(
        False,
        description="draw the next batch in a thread while this one is trained on: by the weights of before the "
        "update, for which the ratio corrects, and at the price of a copy of them",
    )
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the rollouts")
    clip_low: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the ratio is clipped below at 1 - clip_low; ppo 0.1, gspo 0.0003, cispo 1, else 0.2",
    )
    clip_high: float | None = Field(
        None,
        ge=0,
        description="the ratio is clipped above at 1 + clip_high; ppo 0.1, dapo 0.28, gspo 0.0004, cispo 4, else 0.2",
    )
    kl: float = Field(
        0.0, ge=0, description="weight of the KL divergence to the warm-up model; 0 runs no reference"
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="how the divergence is estimated; grpo k3, reinforce_pp k2, else none"
    )
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    reward_parts: dict[str, float] = Field(
        {},
        description="weights of the parts that a reward is the sum of: outcome, the task's own reward; right; "
        "recognised; what else the task judges (of cards: cards, formed). Empty: the task's reward",
    )
    old_logprobs: Literal["engine", "trainer"] = Field(
        "engine",
        description="whose log-probabilities the ratio is taken against: the engine's, or the trainer's own, for which "
        "each batch goes through the model once more",
    )
    tis: float = Field(
        0.0,
        ge=0,
        description="with old_logprobs = trainer: each token weighs p_trainer / p_engine, but at most this; 0 does not",
    )
    gamma: float | None = Field(None, ge=0, le=1, description="discount from turn to turn; ppo 0.9")
    lam: float | None = Field(
        None, ge=0, le=1, description="lambda of the generalised advantage estimate over turns; ppo 0.95"
    )
    value: float | None = Field(None, ge=0, description="weight of the value head's loss; ppo 0.5")
    value_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the value head; unset, that of the model"
    )
    demonstrations: int | None = Field(
        None, ge=1, description="luffy, chord: right answers shown beside each item's episodes; 1"
    )
    mu: float | None = Field(
        None,
        ge=0,
        le=1,
        description="chord: weight of the demonstrations' batch at the start, the episodes' is 1 - mu; chord 0.9, "
        "chord_phi 0.1",
    )
    mu_end: float | None = Field(
        None, ge=0, le=1, description="chord: the same in the end; chord 0.05, chord_phi 0.1"
    )
    mu_steps: int | None = Field(
        None, ge=0, description="chord: updates from mu to mu_end; chord 200, chord_phi 0"
    )
    overlong: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the reward falls by up to 1 over this last part of rollout.max_new_tokens; dapo 0.2, else 0",
    )
    resample: int | None = Field(
        None,
        ge=0,
        description="times that groups of equal reward are replaced by new items' before the batch is taken as it is; "
        "dapo 3, else 0",
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
        16384, ge=1, description="tokens pushed through the model at once in training"
    )
    trainer: Literal["auto", "native", "transformers"] = Field(
        "auto",
        description="whose code computes what is trained: `native`, the engine's kernels on a CPU, so that the policy "
        "trained is the one sampled; `transformers`, its modules, for any model; `auto`: native where it can be",
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
    lora: LoraConfig = LoraConfig()
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
