"""A run and what is made of it: ``results.json``, the table and the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sftrl_fast.config import Config
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.runtime.files import write_json, write_text
from sftrl_fast.study.compare import build_results
from sftrl_fast.study.page import markdown
from sftrl_fast.study.plots import plot_rates, plot_training
from sftrl_fast.train import run as train
from sftrl_fast.train.state import RunState


@dataclass(frozen=True, slots=True)
class Study:
    """``results`` is the content of ``results.json``, None if a signal stopped the run before its end."""

    folder: Path
    results: dict[str, Any] | None


def run(config: Config, out: Path | None, name: str) -> Study:
    """Train and evaluate every arm in a new folder, then report."""
    return _report(train.run(config, out, name))


def resume(path: Path) -> Study:
    """Go on with the run in ``path``, then report."""
    return _report(train.resume(path))


def _report(done: train.RunResult) -> Study:
    folder = done.folder
    if done.stopped:
        return Study(folder.path, None)
    results = build_results(
        outcomes(done.config, done.state),
        questions=done.state.questions,
        compute=costs(done.config, done.state),
        rates=rates(done.config, done.state),
        confidence=done.config.eval.confidence,
    )
    write_json(folder.results_path, results)
    write_text(folder.path / "table.md", markdown(results))
    plot_rates(results, folder.figures / "rates")
    if done.state.curve and {"id", "rule_ood"} <= set(done.config.task.eval):
        plot_training(training_curve(done.config, done.state), folder.figures / "training")
    return Study(folder.path, results)


def outcomes(config: Config, state: RunState) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    """Seed -> arm -> set -> success of each item. The base model stands under every seed."""
    return {
        seed: {
            arm: {
                name: np.array([c == "1" for c in bits])
                for name, bits in state.evaluations["base" if arm == "base" else f"seed{seed}/{arm}"].items()
            }
            for arm in ("base", "warmup", "sft", "rl")
        }
        for seed in config.seeds
    }


def rates(config: Config, state: RunState) -> dict[str, dict[str, dict[str, float]]]:
    """Rate's name -> arm -> set -> that rate, mean over seeds: what the task counts beside success, if anything."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for arm in ("base", "warmup", "sft", "rl"):
        stages = ["base"] if arm == "base" else [f"seed{seed}/{arm}" for seed in config.seeds]
        for name, counted in state.rates[stages[0]].items():
            for rate in counted:
                values = [state.rates[stage][name][rate] for stage in stages]
                found.setdefault(rate, {}).setdefault(arm, {})[name] = sum(values) / len(values)
    return found


def training_curve(config: Config, state: RunState) -> list[dict[str, Any]]:
    """The evaluations along the way; each arm's course begins at the warm-up checkpoint."""
    starts = [
        {"arm": arm, "seed": seed, "step": 0, "flops": 0, "set": name, "rate": bits.count("1") / len(bits)}
        for seed in config.seeds
        for arm in ("rl", "sft")
        for name, bits in state.evaluations[f"seed{seed}/warmup"].items()
    ]
    return starts + state.curve


def costs(config: Config, state: RunState) -> dict[str, dict[str, float]]:
    """What each arm spent, warm-up included (Chu et al., appendix: D_init counts for both), mean over seeds."""
    totals = {}
    for arm in ("warmup", "rl", "sft"):
        spent = []
        for seed in config.seeds:
            compute = Compute.from_dict(state.compute[f"seed{seed}/warmup"])
            if arm != "warmup":
                compute += Compute.from_dict(state.compute[f"seed{seed}/{arm}"])
            spent.append(compute.summary())
        totals[arm] = {key: sum(s[key] for s in spent) / len(spent) for key in spent[0]}
    return totals
