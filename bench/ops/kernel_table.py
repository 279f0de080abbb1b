"""Compile every Triton kernel for GPUs that are not here, and say what came out.

Each case of each kernel file's ``COMPILE_CASES`` is compiled for each target; ptxas reports registers and spills,
cuobjdump the shared memory and the instructions. Needs no GPU. A case that spills or goes over its budget is
marked, and the script then ends with status 1.

    python bench/ops/kernel_table.py                    # every type, compute capabilities 80, 90 and 100
    python bench/ops/kernel_table.py --only sample      # cases whose name holds this
    python bench/ops/kernel_table.py --record           # writes bench/results/kernels.csv and kernel_work.csv
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is not heeded: kernels are compiled here", file=sys.stderr)

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, CompiledKernel

import sftrl_fast.kernels
from sftrl_fast.kernels.compile_case import FUSION, CompileCase, Work

RESULTS = Path(__file__).resolve().parents[1] / "results"
TARGETS = (80, 90, 100)
MAIN_TARGET, SIDE_DTYPE = 90, "bf16"
"""``--default``: every case for the main target, and the others for one type (or the only one of a kernel)."""
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

INSTRUCTIONS = {
    "mma": r"^(?:HMMA|IMMA|HGMMA|QGMMA|UTC\w*MMA)\b",
    "ffma": r"^FFMA",
    "async_copies": r"^(?:LDGSTS|UTMALDG|UBLKCP)\b",
    "loads_128": r"^LDG\.(?:\w+\.)*128",
    "loads_64": r"^LDG\.(?:\w+\.)*64(?!\.\w*64)",
    "loads_all": r"^LDG\b",
    "stores_128": r"^STG\.(?:\w+\.)*128",
    "stores_all": r"^STG\b",
    "atomics": r"^(?:ATOMG?|RED)\b(?!S)",
}
"""Columns of the table: counts of SASS instructions whose name matches (as they stand, not as often as they run)."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line of the table."""

    kernel: str
    dtype: str
    target: str
    warps: int
    stages: int
    registers: int
    budget: int
    spill_bytes: int
    """Stored and loaded, as ptxas counts them: instructions' widths, not run-time traffic."""
    shared_bytes: int
    """Static and dynamic, a program."""
    mma: int
    ffma: int
    async_copies: int
    loads_128: int
    loads_64: int
    loads_all: int
    stores_128: int
    stores_all: int
    atomics: int
    instructions: int

    @property
    def fault(self) -> str:
        """Why the case fails; the empty string if it does not."""
        if self.spill_bytes:
            return f"spills {self.spill_bytes} bytes"
        if self.registers > self.budget:
            return f"takes {self.registers} registers, budget {self.budget}"
        return ""


def kernel_files() -> list[Any]:
    """The modules of ``sftrl_fast.kernels`` that hold kernels, in the order of their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(sftrl_fast.kernels.__path__))
    modules = [importlib.import_module(f"sftrl_fast.kernels.{name}") for name in names]
    return [module for module in modules if hasattr(module, "COMPILE_CASES")]


def chosen_cases(targets: Sequence[int], only: str, default: bool) -> list[tuple[CompileCase, int]]:
    cases = [case for module in kernel_files() for case in module.COMPILE_CASES if only in case.name]
    several = {case.name for case in cases if case.dtype == SIDE_DTYPE}
    return [
        (case, target)
        for case in cases
        for target in targets
        if not default or target == MAIN_TARGET or case.dtype == SIDE_DTYPE or case.name not in several
    ]


def compile_case(case: CompileCase, target: int) -> CompiledKernel:
    """The kernel as a launch with aligned tensors would have it."""
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        if name in case.constexprs:
            signature[name] = "constexpr"
            continue
        kind, _, aligned = case.signature[name].partition(":")
        signature[name] = kind
        if aligned or kind.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    unknown = (set(case.signature) | set(case.constexprs)) - set(case.kernel.arg_names)
    if unknown:
        raise ValueError(f"{case.name}: {sorted(unknown)} are no arguments of the kernel")
    source = ASTSource(case.kernel, signature, dict(case.constexprs), attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **FUSION}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def examine(case: CompileCase, target: int) -> Report:
    compiled = compile_case(case, target)
    registers, spilled = resources(compiled.asm["ptx"], target)
    names = sass_names(compiled.asm["cubin"])
    counts = {key: sum(bool(re.match(p, name)) for name in names) for key, p in INSTRUCTIONS.items()}
    return Report(
        case.name, case.dtype, f"sm_{target}", case.num_warps, case.num_stages, registers, case.registers,
        spilled, compiled.metadata.shared, **counts, instructions=len(names),
    )  # fmt: skip


def resources(ptx: str, target: int) -> tuple[int, int]:
    """Registers a thread, and bytes of spill stores and loads, from ``ptxas -v``."""
    arch = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert arch is not None
    ptxas = get_ptxas(target).path  # Triton brings two, for old and new capabilities
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", "--regAllocOptLevel=2", f"--gpu-name={arch[1]}", source, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert used is not None, done.stderr
    assert spills is not None, done.stderr
    return int(used[1]), int(spills[1]) + int(spills[2])


def sass_names(cubin: bytes) -> list[str]:
    """Names of the machine instructions, modifiers included."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [BINARIES / "cuobjdump", "-sass", binary]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", text, re.MULTILINE)


def works() -> list[Work]:
    return [work for module in kernel_files() for work in module.WORK]


def write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A table is of one state of the kernels: it replaces the one before."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def record(reports: Sequence[Report]) -> None:
    version = triton.__version__
    columns = [field.name for field in fields(Report)]
    write(RESULTS / "kernels.csv", [*columns, "triton"], (asdict(r) | {"triton": version} for r in reports))
    work_columns = [field.name for field in fields(Work)]
    ratios = ["bytes_ratio", "operations_ratio"]
    rows = []
    for work in works():
        moved = round(work.bytes_moved / work.bytes_needed, 3)
        done = round(work.operations_done / work.operations_needed, 3) if work.operations_needed else 1.0
        rows.append(asdict(work) | {"bytes_ratio": moved, "operations_ratio": done})
    write(RESULTS / "kernel_work.csv", [*work_columns, *ratios], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels and report what came out")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS), help="compute capabilities")
    parser.add_argument("--default", action="store_true", help="the part that the tests take")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines, faults included, as JSON")
    parser.add_argument("--record", action="store_true", help="write the CSV files under bench/results")
    args = parser.parse_args(argv)
    if args.record and (args.only or args.default or args.targets != list(TARGETS)):
        parser.error("--record takes the whole table")
    reports = []
    for case, target in chosen_cases(args.targets, args.only, args.default):
        report = examine(case, target)
        reports.append(report)
        print(
            f"{report.kernel:32} {report.dtype:5} {report.target:6} {report.registers:4} registers "
            f"{report.shared_bytes:7} shared  mma {report.mma:4}  async {report.async_copies:4}  {report.fault}",
            flush=True,
        )
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) | {"fault": r.fault} for r in reports], indent=1) + "\n")
    if args.record:
        record(reports)
    return 1 if any(report.fault for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
