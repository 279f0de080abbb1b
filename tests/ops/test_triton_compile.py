"""Every Triton kernel compiles for GPUs that are not here, without spilling and within its file's register budget.

``bench/results/kernels.csv`` has every kernel in every type for every target, and with each line a hash of all that
it came from: it must fit the kernels as they are. A sample is compiled again here, everything with ``-m slow``. In a
process of its own: this one may have triton in its interpreting form.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")

from sftrl_fast import kernels

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "ops" / "kernel_table.py"
RECORDED = SCRIPT.parents[1] / "results" / "kernels.csv"
MODULES = [
    importlib.import_module(f"sftrl_fast.kernels.{info.name}")
    for info in pkgutil.iter_modules(kernels.__path__)
]
CASES = [case for module in MODULES for case in getattr(module, "COMPILE_CASES", ())]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with RECORDED.open(newline="") as file:
        found = list(csv.DictReader(file))
    if {row["triton"] for row in found} != {version("triton")}:
        pytest.skip(f"the table is of another version of triton than {version('triton')}")
    return found


def test_names_are_unique() -> None:
    names = [(case.name, case.dtype) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("table")
def test_the_recorded_table_is_of_these_kernels_and_without_a_fault() -> None:
    done = call("--stale")
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def compiled(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "rows.json"
    done = call(*arguments, "--json", out)
    assert out.exists(), done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())
    assert done.returncode == int(any(row["fault"] for row in found))
    assert {
        f"{row['kernel']} {row['dtype']} {row['target']}": row["fault"] for row in found if row["fault"]
    } == {}
    return found


def test_what_is_compiled_now_is_what_was_recorded(tmp_path: Path, table: list[dict[str, str]]) -> None:
    recorded = {(row["kernel"], row["dtype"], row["target"]): row for row in table}
    found = compiled(tmp_path, "--sample")
    assert {row["kernel"].split("/")[0] for row in found} == {case.name.split("/")[0] for case in CASES}
    for row in found:
        known = recorded[row["kernel"], row["dtype"], row["target"]]
        assert {key: str(value) for key, value in row.items() if key != "fault"} == {
            key: known[key] for key in row if key != "fault"
        }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_keeps_to_its_registers_for_every_target(tmp_path: Path) -> None:
    assert len(compiled(tmp_path)) == 3 * len(CASES)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(
    "kernel", ["logprob.forward", "packed_attention.forward/Dh=64", "cached_attention.parts/Dh=64"]
)
def test_matrix_products_run_on_tensor_cores_fed_asynchronously(
    kernel: str, target: str, table: list[dict[str, str]]
) -> None:
    (row,) = (
        row for row in table if (row["kernel"], row["dtype"], row["target"]) == (kernel, "bf16", target)
    )
    assert int(row["mma"]) > 0
    assert int(row["async_copies"]) > 0


def test_no_kernel_of_this_package_is_atomic(table: list[dict[str, str]]) -> None:
    """Results have one order of sums: the same bits on every run."""
    assert {row["kernel"]: row["atomics"] for row in table if row["atomics"] != "0"} == {}


def probe(tmp_path: Path, text: str) -> str:
    """What a script prints that has ``kernel_table`` as its module."""
    script = tmp_path / "probe.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n{text}")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kernel_over_its_budget_is_a_fault(tmp_path: Path) -> None:
    """The test of the test: a case that cannot keep to its budget."""
    text = (
        "import dataclasses, kernel_table\n"
        "from sftrl_fast.kernels import rms_norm\n"
        "case = dataclasses.replace(rms_norm.COMPILE_CASES[0], registers=8)\n"
        "print(kernel_table.examine(case, 90).fault)\n"
    )
    assert "registers, budget 8" in probe(tmp_path, text)


def test_a_changed_kernel_is_not_as_recorded(tmp_path: Path) -> None:
    """So is one with a called function, a constant or a size that changed."""
    text = (
        "import dataclasses, kernel_table, triton.language as tl\n"
        "from sftrl_fast.kernels import advantage, attention_tiles, packed_attention\n"
        "case, other = packed_attention.COMPILE_CASES[0], advantage.COMPILE_CASES[0]\n"
        "def prints(): return [kernel_table.fingerprint(c) for c in (case, other)]\n"
        "before = prints()\n"
        "print(before == prints())\n"
        "print(kernel_table.fingerprint(dataclasses.replace(case, num_warps=16)) != before[0])\n"
        "step = attention_tiles.softmax_step\n"
        "step._unsafe_update_src(step.src.replace('tl.exp2', 'tl.exp'))\n"
        "advantage.TIE = tl.constexpr(1e-5)\n"
        "print([new != old for new, old in zip(prints(), before)])\n"
    )
    assert probe(tmp_path, text).split("\n") == ["True", "True", "[True, True]", ""]
