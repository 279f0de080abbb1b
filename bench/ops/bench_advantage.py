"""Group advantages and GAE: every implementation that runs here, beside the bytes that must move."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth

from harness import Bench, machine_device
from sftrl_fast.ops.advantage import gae, group_advantage
from sftrl_fast.ops.dispatch import availability

REWARDS, QUICK = (512, 65536), (512,)
GROUP, EPISODE = 8, 16
"""Answers of a prompt, and steps of an episode."""
INPUT_BYTES, OUTPUT_BYTES = 8, 4
"""Rewards, values, groups and offsets come in eight bytes each, as the trainer has them; advantages are float32."""


Sides = dict[str, Callable[[], object]]


def sides(op: str, run: Callable[..., Tensor], probe: Tensor) -> Sides:
    return {row.impl: partial(run, impl=row.impl) for row in availability(op, probe) if row.available}


def cases(count: int, device: torch.device) -> Iterator[tuple[str, Sides, int]]:
    """What is measured on ``count`` rewards: name, sides, bytes that must move."""
    rewards, values = torch.randn(2, count, dtype=torch.float64, device=device)
    moved = count * (2 * INPUT_BYTES + OUTPUT_BYTES)
    groups = torch.arange(count, device=device) // GROUP
    mixed = groups[torch.randperm(count, device=device)]
    for (name, ids), kind in product((("in order", groups), ("mixed", mixed)), ("mean_std", "leave_one_out")):
        run = partial(group_advantage, rewards, ids, kind=kind)
        yield f"{count} rewards, groups {name}, {kind}", sides("group_advantage", run, rewards), moved
    offsets = torch.arange(0, count + 1, EPISODE, device=device)
    run = partial(gae, rewards, values, offsets, gamma=0.99, lam=0.95)
    yield f"{count} rewards, gae", sides("gae", run, rewards), moved + offsets.nbytes


def main() -> None:
    bench = Bench("advantage", "Rewards compared within groups, and generalised advantage estimates")
    device = machine_device()
    bandwidth = copy_bandwidth(device)
    for count in QUICK if bench.args.quick else REWARDS:
        for case, runs, moved in cases(count, device):
            bench.compare(case, "time", "us", runs, ratio_to="torch", repeat=9, scale="us", memory=False)
            bench.value(case, "floor", "time", moved / bandwidth * 1e6, "us")
    bench.finish()


if __name__ == "__main__":
    main()
