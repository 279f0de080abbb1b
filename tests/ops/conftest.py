"""What the tests of all ops share: the implementations that run here, and the instruction-set levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sftrl_fast import _C
from sftrl_fast.ops.dispatch import interpreting

LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each instruction-set level in turn; a level that this processor lacks is skipped."""
    best = _C.detected_level()
    if LEVELS.index(request.param) > LEVELS.index(best):
        pytest.skip(f"this processor runs levels up to {best}")
    before = _C.level()
    _C.set_level(request.param)
    yield request.param
    _C.set_level(before)


@pytest.fixture(autouse=True)
def _no_bf16_under_the_interpreter(request: pytest.FixtureRequest) -> None:
    """Triton's interpreter keeps bf16 as whole numbers and adds those: only float32 means something there."""
    arguments = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if interpreting() and arguments.get("impl") == "triton" and arguments.get("dtype") == torch.bfloat16:
        pytest.skip("the interpreter's bf16 arithmetic is wrong")


@pytest.fixture(autouse=True, scope="session")
def _exact_interpreted_dot() -> Iterator[None]:
    """The interpreter's ``tl.dot`` in float64, rounded once: numpy's BLAS rounds a row by its place in the tile and
    by the processor, so what a test saw would be BLAS's error and not the kernel's."""
    if not interpreting():
        yield
        return
    interpreter = pytest.importorskip(
        "triton.runtime.interpreter", reason="the package triton is not installed"
    )

    def dot(_builder: Any, a: Any, b: Any, d: Any, *_precision: Any) -> Any:
        product = a.data.astype(np.float64) @ b.data.astype(np.float64)
        return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        yield
