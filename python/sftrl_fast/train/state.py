"""What a run has done so far, and the order of what it does: the part of a checkpoint that is not weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sftrl_fast.config import Config
from sftrl_fast.core import UserError


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of a run: train an arm, or evaluate it on a set. ``seed`` is None for the base model."""

    kind: str
    """``train`` or ``eval``."""
    seed: int | None
    arm: str
    """``base``, ``warmup``, ``rl`` or ``sft``."""
    set: str = ""

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"seed{self.seed}/{self.arm}"


def plan(config: Config) -> list[Stage]:
    """Every stage of a run in order. RL goes before SFT, since the SFT arm is given what the RL arm spent."""
    stages = [Stage("eval", None, "base", name) for name in config.task.eval]
    for seed in config.seeds:
        for arm in ("warmup", "rl", "sft"):
            stages.append(Stage("train", seed, arm))
            stages += [Stage("eval", seed, arm, name) for name in config.task.eval]
    return stages


@dataclass(slots=True)
class RunState:
    """JSON-serialisable. ``stage`` and ``step`` say where to go on; the rest is what was found so far."""

    settings: int
    """Hash of the settings the run began with; with others a resumed run would be no run at all."""
    stage: int = 0
    step: int = 0
    """Optimizer steps (SFT) or updates (RL) done within the stage."""
    metrics_position: int = 0
    """Bytes of ``metrics.jsonl`` that belong to this state."""
    compute: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stage name -> ledger of the arm, the warm-up not included."""
    evaluations: dict[str, dict[str, str]] = field(default_factory=dict)
    """Stage name -> set -> one character an item, ``1`` for success."""
    rates: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Stage name -> set -> the task's rates beside success, by name; see ``Evaluation.rates``."""
    questions: dict[str, list[int]] = field(default_factory=dict)
    """Set -> the question each evaluated item asks."""
    skipped: int = 0
    """Optimizer steps that were not taken, since their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Those since the last one that was taken."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations along the way: seed, arm, step, flops, set, rate."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """``UserError`` if the fields are not those of this version."""
        try:
            return cls(**data)
        except TypeError as fault:
            raise UserError(f"the checkpoint was written by another version of sftrl-fast: {fault}") from None
