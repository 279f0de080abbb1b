"""Budgets that keep the code readable: no giant files or functions, no drawers for odds and ends, and no task
named above the tasks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "sftrl_fast"

FILE_LINES = 400
FUNCTION_LINES = 60
KERNEL_LINES = 150
"""A Triton body: it cannot be cut into functions as freely."""
INIT_LINES = 40
TASK_TABLE = PACKAGE / "tasks" / "__init__.py"
DRAWERS = {"common", "helpers", "misc", "util", "utils"}

MAY_NAME_TASKS = {
    "__init__.py",
    "tasks",
    "configs",
    "cli/solve.py",
    "cli/verify.py",
    "cli/data.py",
    "cli/play.py",
    "_C.pyi",
}
"""Relative to the package; the package's own ``__init__`` exports the verifier, ``_C.pyi`` types it."""


def sources(*suffixes: str) -> list[Path]:
    folders = [ROOT / name for name in ("python", "kernels", "tests", "bench", "csrc")]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in suffixes and not path.is_relative_to(PACKAGE / "configs")
    )


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(re.search(r"\btriton\.jit\b", ast.unparse(decorator)) for decorator in function.decorator_list)


def function_budget(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return KERNEL_LINES if is_kernel(function) else FUNCTION_LINES


def too_long(source: str) -> dict[str, int]:
    """Functions beyond their budget, name -> lines, docstring and signature included."""
    lengths = {}
    for function in functions(ast.parse(source)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > function_budget(function):
            lengths[function.name] = length
    return lengths


def test_sources_are_found() -> None:
    """An empty walk would pass every budget."""
    found = sources(".py", ".cpp", ".h")
    assert Path(__file__).resolve() in found
    assert PACKAGE / "core.py" in found
    assert any(path.suffix == ".cpp" for path in found)


@pytest.mark.parametrize("path", sources(".py", ".pyi", ".cpp", ".h"), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    budget = FILE_LINES
    if path.name == "__init__.py" and path != TASK_TABLE:
        budget = INIT_LINES
    assert lines_of(path) <= budget


@pytest.mark.parametrize("path", sources(".py"), ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    assert too_long(path.read_text(encoding="utf-8")) == {}


def test_budget_sees_nested_and_async_functions_and_spares_kernels() -> None:
    body = "".join(f"        x{i} = {i}\n" for i in range(FUNCTION_LINES))
    source = f"class A:\n    async def long(self):\n{body}    @triton.jit\n    def kernel(p):\n{body}"
    assert too_long(source) == {"long": FUNCTION_LINES + 1}


def test_there_are_no_drawers() -> None:
    found = [path for path in sources(".py", ".cpp", ".h") if path.stem in DRAWERS]
    assert found == []


def test_nothing_above_the_tasks_names_a_task() -> None:
    tasks = [folder.name for folder in (PACKAGE / "tasks").iterdir() if (folder / "env.py").exists()]
    assert tasks, "no task folder found"
    spellings = [name.replace("_", "[_ -]?") for name in tasks]
    pattern = re.compile("|".join(spellings), re.IGNORECASE)
    allowed = [PACKAGE / name for name in MAY_NAME_TASKS]
    outside = [
        p for p in sorted(PACKAGE.rglob("*.py")) if not any(p.is_relative_to(place) for place in allowed)
    ]
    naming = [str(p.relative_to(ROOT)) for p in outside if pattern.search(p.read_text(encoding="utf-8"))]
    assert naming == []
