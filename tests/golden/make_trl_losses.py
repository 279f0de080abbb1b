"""Makes ``trl_losses.json``: losses and gradients of TRL's own trainers on given log-probabilities.

    pip install 'sftrl-fast[peers]' && python tests/golden/make_trl_losses.py

TRL's loss functions are called as they are; only the model's forward pass is replaced by the tensors of the file. It is
run by hand, not with the tests: TRL brings a hundred megabytes of further packages.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl import GRPOTrainer, RLOOTrainer

MAX_LENGTH = 8
LENGTHS = [5, 8, 1, 3]

GRPO_ROWS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "beta": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo_entropy": {"loss_type": "dapo", "epsilon_high": 0.28, "entropy": 0.05},
    "dapo_tis": {"loss_type": "dapo", "epsilon_high": 0.28, "tis": 1.1},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}
"""Our row -> TRL's settings; ``epsilon_high`` of TRL's cispo is the bound itself, not its distance from 1."""


class Accelerator:
    """One process."""

    num_processes = 1
    sync_gradients = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:  # noqa: ARG002
        return tensor


class Metrics(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def tensors() -> dict[str, torch.Tensor]:
    """What both sides are given: ``[4, 8]``, but for ``advantages``, ``[4]``; padding on the right."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), MAX_LENGTH)
    mask = (torch.arange(MAX_LENGTH) < torch.tensor(LENGTHS)[:, None]).double()
    logps = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    old = logps + noise[0]
    return {
        "logps": logps,
        "old": old,
        "reference": logps + noise[1],
        "sampled": old + noise[2],
        "entropies": torch.rand(shape, generator=generator, dtype=torch.float64),
        "mask": mask,
        "advantages": torch.tensor([1.5, -0.5, 0.75, -1.25], dtype=torch.float64),
    }


def trainer(logps: torch.Tensor, entropies: torch.Tensor, **settings: Any) -> SimpleNamespace:
    """As much of a trainer as its loss reads."""
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1}
    defaults = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": "tis" in settings,
        "vllm_importance_sampling_correction": "tis" in settings,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": MAX_LENGTH,
        "_entropy_bonus_enabled": "entropy" in settings,
        "use_adaptive_entropy": False,
        "entropy_coef": settings.get("entropy", 0.0),
        "accelerator": Accelerator(),
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": Metrics()},
        "args": SimpleNamespace(**args),
    }
    forward = SimpleNamespace(_get_per_token_logps_and_entropies=lambda *_, **__: (logps, entropies, None))
    return SimpleNamespace(**{**defaults, **settings, **vars(forward)})


def loss_and_gradient(kind: Any, given: dict[str, torch.Tensor], **settings: Any) -> dict[str, Any]:
    logps = given["logps"].clone().requires_grad_()
    ids = torch.zeros_like(given["mask"], dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": given["mask"],
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "old_logps": (given["old"] * given["mask"]).sum(1),
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": given["mask"].sum(),
        "importance_sampling_ratio": (given["old"] - given["sampled"])
        .exp()
        .clamp(max=settings.get("tis", 1.0)),
    }
    loss = kind._compute_loss(trainer(logps, given["entropies"], **settings), None, inputs)
    loss.backward()
    assert logps.grad is not None
    return {"settings": settings, "loss": loss.item(), "gradient": logps.grad.tolist()}


def main() -> None:
    given = tensors()
    rows = {name: loss_and_gradient(GRPOTrainer, given, **keys) for name, keys in GRPO_ROWS.items()}
    # TRL's RLOO clips the ratio of whole answers, as our row ppo does; on fresh samples it is the plain estimate.
    rows["ppo"] = loss_and_gradient(RLOOTrainer, given, epsilon_low=0.1, epsilon_high=0.1)
    rows["rloo_fresh"] = loss_and_gradient(RLOOTrainer, given | {"old": given["logps"]})
    data = {
        "trl": trl.__version__,
        "max_length": MAX_LENGTH,
        "given": {name: tensor.tolist() for name, tensor in given.items()},
        "rows": rows,
    }
    path = Path(__file__).with_suffix("").with_name("trl_losses.json")
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
