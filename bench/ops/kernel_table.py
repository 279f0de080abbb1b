"""Compile every Triton kernel for GPUs that are not here, and say what came out.

Each case of each kernel file's ``COMPILE_CASES`` is compiled for each target; ptxas reports registers and spills,
cuobjdump the shared memory and the instructions. Needs no GPU. A case that spills or goes over its budget is
marked, and the script then ends with status 1.

    python bench/ops/kernel_table.py                    # every type, compute capabilities 80, 90 and 100
    python bench/ops/kernel_table.py --only sample      # cases whose name holds this
    python bench/ops/kernel_table.py --record           # brings kernels.csv and kernel_work.csv up to date
    python bench/ops/kernel_table.py --record --anew    # and compiles what has not changed too
    python bench/ops/kernel_table.py --stale            # lines that the recorded table lacks; compiles nothing

A line's ``source`` is a hash of all that decides what comes out: the kernel and what it calls, its types, sizes and
options, and Triton's version. So a recorded line with that hash need not be compiled again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is not heeded: kernels are compiled here", file=sys.stderr)

import triton
import triton.language as tl
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, CompiledKernel

import sftrl_fast.kernels
from sftrl_fast.kernels.compile_case import FUSION, CompileCase, Work

RESULTS = Path(__file__).resolve().parents[1] / "results"
TARGETS = (80, 90, 100)
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
    source: str
    """:func:`fingerprint`."""

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


def chosen_cases(targets: Sequence[int], only: str, sample: bool) -> list[tuple[CompileCase, int]]:
    """``sample``: one case of each kernel, in bf16 if it has that, for the targets in turn."""
    cases = [case for module in kernel_files() for case in module.COMPILE_CASES if only in case.name]
    if not sample:
        return [(case, target) for case in cases for target in targets]
    first: dict[str, CompileCase] = {}
    for case in sorted(cases, key=lambda case: case.dtype != "bf16"):
        first.setdefault(case.name.split("/")[0], case)
    return [(case, targets[i % len(targets)]) for i, case in enumerate(first.values())]


def fingerprint(case: CompileCase) -> str:
    """A hash of what :func:`compile_case` depends on but the target."""
    said = (triton.__version__, case.signature, case.constexprs, case.num_warps, case.num_stages, FUSION)
    text = "\n".join([repr([dict(x) if isinstance(x, Mapping) else x for x in said]), *_sources(case.kernel)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sources(kernel: JITFunction[Any]) -> list[str]:
    """The text of a kernel and of those it calls, and its constants, each once."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        found[function.fn.__qualname__] = function.src
        for name in function.fn.__code__.co_names:
            used = function.fn.__globals__.get(name)
            if isinstance(used, tl.constexpr):
                found[name] = repr(used.value)
            elif isinstance(used, JITFunction) and used.fn.__qualname__ not in found:
                waiting.append(used)
    return [f"{name}: {found[name]}" for name in sorted(found)]


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
        spilled, compiled.metadata.shared, **counts, instructions=len(names), source=fingerprint(case),
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


def recorded() -> dict[tuple[str, str, str, str], Report]:
    """The lines of ``kernels.csv`` by kernel, type, target and source."""
    with (RESULTS / "kernels.csv").open(newline="", encoding="utf-8") as file:
        lines = [{key: line[key] for key in line if key != "triton"} for line in csv.DictReader(file)]
    names = {field.name for field in fields(Report)}
    words = ("kernel", "dtype", "target", "source")
    reports = [
        Report(**{key: text if key in words else int(text) for key, text in line.items()})  # type: ignore[arg-type]
        for line in lines
        if set(line) == names
    ]
    return {_key(report): report for report in reports}


def _key(report: Report) -> tuple[str, str, str, str]:
    return report.kernel, report.dtype, report.target, report.source


def stale() -> list[str]:
    """What the recorded table lacks, has too much, or has with a fault."""
    known, lines = recorded(), []
    for case, target in chosen_cases(TARGETS, "", False):
        key = (case.name, case.dtype, f"sm_{target}", fingerprint(case))
        report = known.pop(key, None)
        if report is None or report.budget != case.registers:
            lines.append(f"{' '.join(key[:3])}: not recorded as it is now")
        elif report.fault:
            lines.append(f"{' '.join(key[:3])}: {report.fault}")
    return [*lines, *(f"{' '.join(key[:3])}: recorded, and no such case" for key in known)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels and report what came out")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS), help="compute capabilities")
    parser.add_argument("--sample", action="store_true", help="one case of each kernel, the targets in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines, faults included, as JSON")
    parser.add_argument("--record", action="store_true", help="write the CSV files under bench/results")
    parser.add_argument("--anew", action="store_true", help="compile also what is recorded as it is now")
    parser.add_argument(
        "--stale", action="store_true", help="say where the recorded table does not fit the kernels"
    )
    args = parser.parse_args(argv)
    if args.record and (args.only or args.sample or args.targets != list(TARGETS)):
        parser.error("--record takes the whole table")
    if args.stale:
        lines = stale()
        print("\n".join(lines))
        return int(bool(lines))
    known = recorded() if args.record and not args.anew else {}
    reports = []
    for case, target in chosen_cases(args.targets, args.only, args.sample):
        report = known.get((case.name, case.dtype, f"sm_{target}", fingerprint(case)))
        if report is None:
            report = examine(case, target)
            print(
                f"{report.kernel:32} {report.dtype:5} {report.target:6} {report.registers:4} registers "
                f"{report.shared_bytes:7} shared  mma {report.mma:4}  async {report.async_copies:4}  {report.fault}",
                flush=True,
            )
        reports.append(replace(report, budget=case.registers))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) | {"fault": r.fault} for r in reports], indent=1) + "\n")
    if args.record:
        record(reports)
    return 1 if any(report.fault for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
