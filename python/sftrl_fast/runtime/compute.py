"""The compute ledger: tokens, samples, seconds, and FLOPs counted as the paper counts them.

Chu et al. 2025 (arXiv 2501.17161), appendix on computation: with ``N`` parameters, training on ``D`` tokens
costs ``6 N D`` and generating ``D`` tokens costs ``2 N D`` (Kaplan et al. 2020, arXiv 2001.08361: 2 forward,
4 backward, per parameter and token).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from sftrl_fast.core import UserError

MATCH_AXES = ("flops", "samples", "tokens", "seconds")
"""What ``compute.match`` may name."""

TRAIN_FLOPS = 6
"""FLOPs a parameter and trained token: forward 2, backward 4."""
GENERATE_FLOPS = 2
"""FLOPs a parameter and generated token: forward only."""


@dataclass(slots=True)
class Compute:
    """What one arm has spent. Counts are exact integers, so sums never depend on the order of steps."""

    parameters: int
    """``N``, every parameter of the model, embeddings included."""
    samples: int = 0
    """Demonstrations shown (each visit counts) and episodes sampled."""
    trained_tokens: int = 0
    """The algorithm's tokens: each row's prompt and answer, once for every time the row is trained on."""
    generated_tokens: int = 0
    """The algorithm's tokens: each prompt and answer, once for every time it is generated."""
    executed_trained_tokens: int = 0
    """Token positions that really went through forward and backward: padding in, shared prefixes once."""
    executed_generated_tokens: int = 0
    """Token positions that really went through the model while generating: padding in, cached ones once."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.parameters <= 0:
            raise ValueError(f"parameters must be positive, got {self.parameters}")
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must not be negative, got {getattr(self, field.name)}")

    def train(self, tokens: int, executed: int, *, samples: int = 0, seconds: float = 0.0) -> None:
        """Book one optimizer step's work. SFT gives its demonstrations as ``samples``; RL, whose episodes
        were booked by :meth:`generate`, gives none."""
        self._book(samples=samples, trained_tokens=tokens, executed_trained_tokens=executed, seconds=seconds)

    def generate(self, tokens: int, executed: int, *, samples: int = 0, seconds: float = 0.0) -> None:
        """Book one round of sampling; ``samples`` is its number of episodes."""
        self._book(
            samples=samples, generated_tokens=tokens, executed_generated_tokens=executed, seconds=seconds
        )

    def _book(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            if amount < 0:
                raise ValueError(f"{name} can only grow, got {amount}")
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    def __add__(self, other: Compute) -> Compute:
        """Both costs together, as in ``X_SFT = 6 N (D_init + D_SFT)``: warm-up plus arm, one model."""
        if self.parameters != other.parameters:
            raise ValueError(
                f"cannot add the costs of models of {self.parameters} and {other.parameters} parameters"
            )
        amounts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Compute(**{**amounts, "parameters": self.parameters})

    @property
    def tokens(self) -> int:
        """The algorithm's tokens, trained and generated."""
        return self.trained_tokens + self.generated_tokens

    @property
    def flops(self) -> int:
        """By the paper's formula, ``6 N D_trained + 2 N D_generated``: what the algorithm asks for."""
        return self.parameters * (TRAIN_FLOPS * self.trained_tokens + GENERATE_FLOPS * self.generated_tokens)

    @property
    def flops_executed(self) -> int:
        """The same formula over executed positions: what this implementation did."""
        return self.parameters * (
            TRAIN_FLOPS * self.executed_trained_tokens + GENERATE_FLOPS * self.executed_generated_tokens
        )

    def axis(self, name: str) -> float:
        """The amount spent on a matching axis: FLOPs, samples, tokens, or seconds.

        Raises:
            UserError: ``name`` is none of :data:`MATCH_AXES`.
        """
        if name not in MATCH_AXES:
            raise UserError(f"compute.match = {name!r} is unknown; use one of {', '.join(MATCH_AXES)}")
        amount: float = getattr(self, name)
        return amount

    def summary(self) -> dict[str, float]:
        """The columns of the results table: samples, tokens, FLOPs by formula, FLOPs executed, seconds."""
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "flops": self.flops,
            "flops_executed": self.flops_executed,
            "seconds": self.seconds,
        }

    def to_dict(self) -> dict[str, float]:
        """Every field, for a checkpoint; :meth:`from_dict` gives an equal ledger back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> Compute:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: a field is missing or unknown, as in a checkpoint of another version.
        """
        expected = {f.name for f in fields(cls)}
        if set(state) != expected:
            odd = ", ".join(sorted(expected ^ set(state)))
            raise UserError(f"compute ledger in the checkpoint has missing or unknown fields: {odd}")
        counts = {name: float(v) if name == "seconds" else int(v) for name, v in state.items()}
        return cls(**counts)  # type: ignore[arg-type]  # ints and one float, by name
