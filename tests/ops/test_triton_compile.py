"""Every Triton kernel compiles for GPUs that are not here, without spilling and within its file's register budget.

In a process of its own: this one may have triton in its interpreting form. The whole matrix of types and targets
is ``python bench/ops/kernel_table.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")

from sftrl_fast import kernels

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "ops" / "kernel_table.py"
MODULES = [
    importlib.import_module(f"sftrl_fast.kernels.{info.name}")
    for info in pkgutil.iter_modules(kernels.__path__)
]
CASES = [case for module in MODULES for case in getattr(module, "COMPILE_CASES", ())]


def rows(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    out = tmp_path / "rows.json"
    command = [sys.executable, SCRIPT, *arguments, "--json", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())
    assert done.returncode == int(any(row["fault"] for row in found))
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rows(tmp_path_factory.mktemp("table"), "--default")


def test_names_are_unique() -> None:
    names = [(case.name, case.dtype) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.dtype}")
def test_kernel_keeps_to_its_registers(case: Any, table: list[dict[str, Any]]) -> None:
    found = [row for row in table if (row["kernel"], row["dtype"]) == (case.name, case.dtype)]
    assert "sm_90" in [row["target"] for row in found]
    assert {row["target"]: row["fault"] for row in found if row["fault"]} == {}


def test_other_targets_are_covered_for_each_kernel(table: list[dict[str, Any]]) -> None:
    for name in {case.name for case in CASES}:
        assert {row["target"] for row in table if row["kernel"] == name} == {"sm_80", "sm_90", "sm_100"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_matrix_products_run_on_tensor_cores_fed_asynchronously(
    target: str, table: list[dict[str, Any]]
) -> None:
    found = [row for row in table if row["kernel"] == "logprob.forward" and row["dtype"] == "bf16"]
    (row,) = (row for row in found if row["target"] == target)
    assert row["mma"] > 0
    assert row["async_copies"] > 0


def test_no_kernel_of_this_package_is_atomic(table: list[dict[str, Any]]) -> None:
    """Results have one order of sums: the same bits on every run."""
    assert {row["kernel"]: row["atomics"] for row in table if row["atomics"]} == {}


def test_a_kernel_over_its_budget_is_a_fault(tmp_path: Path) -> None:
    """The test of the test: the table's script calls a case that cannot keep to its budget by its name."""
    script = tmp_path / "tight.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import dataclasses, kernel_table\n"
        "from sftrl_fast.kernels import rms_norm\n"
        "case = dataclasses.replace(rms_norm.COMPILE_CASES[0], registers=8)\n"
        "print(kernel_table.examine(case, 90).fault)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert "registers, budget 8" in done.stdout, done.stderr
