"""Which FlashAttention package serves, and whether an installed one takes what is passed to it."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.attention import CacheRows, PackedRows, cached_attention, packed_attention
from sftrl_fast.ops.dispatch import OPS, Implementation
from sftrl_fast.ops.flash import packages

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flash_signatures.json").read_text())
SIGNATURES = {function: arguments for entry in GOLDEN.values() for function, arguments in entry.items()}
TYPES = [torch.bfloat16, torch.float16]
MARGIN = 3.0
"""Error against float64 allowed over that of plain torch: two results in the type are added, and rounded again."""


def pretend(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], capability: tuple[int, int] | None
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    for cached in (
        packages.why_not_packed,
        packages.why_not_cached,
        packages.packed_package,
        packages.cached_package,
    ):
        monkeypatch.setattr(packages, cached.__name__, cached.__wrapped__)


TWO, FOUR = "2.8.3.post2", "4.0.0b36"


@pytest.mark.parametrize(
    ("versions", "capability", "packed", "cached"),
    [
        ({}, (9, 0), "flash-attn is not installed (extra: cuda)", "flash-attn-3 is not installed"),
        ({"flash-attn": TWO}, None, "and there is no CUDA device", "flash-attn-4 is not installed"),
        ({"flash-attn": "2.5.9.post1"}, (9, 0), "flash-attn 2.5.9.post1 is installed, needed: 2.8", "not installed"),
        ({"flash-attn": TWO}, (7, 5), "flash-attn is not for compute capability 7.5", "not installed"),
        ({"flash-attn-4": FOUR}, (8, 0), "flash-attn-4 is not for compute capability 8.0", "capability 8.0"),
    ],
)  # fmt: skip
def test_why_no_package_serves(
    versions: dict[str, str], capability: tuple[int, int] | None, packed: str, cached: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pretend(monkeypatch, versions, capability)
    for why, chosen, reason in (
        (packages.why_not_packed, packages.packed_package, packed),
        (packages.why_not_cached, packages.cached_package, cached),
    ):
        assert reason in why()
        with pytest.raises(UserError) as raised:
            chosen()
        assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("versions", "capability", "packed", "cached"),
    [
        ({"flash-attn": TWO, "flash-attn-3": "3.0.0b1"}, (8, 0), "flash-attn", "flash-attn-3"),
        ({"flash-attn": TWO, "flash-attn-4": FOUR}, (10, 0), "flash-attn-4", "flash-attn-4"),
    ],
)
def test_which_package_serves(
    versions: dict[str, str], capability: tuple[int, int], packed: str, cached: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pretend(monkeypatch, versions, capability)
    assert (packages.why_not_packed(), packages.why_not_cached()) == ("", "")
    assert (packages.packed_package(), packages.cached_package()) == (packed, cached)


@pytest.mark.parametrize("op", ["packed_attention", "cached_attention"])
def test_the_table_of_ops_names_what_is_missing(op: str) -> None:
    entry = OPS[op]["flash"]
    assert (
        entry.why_not()
        == {"packed_attention": packages.why_not_packed, "cached_attention": packages.why_not_cached}[op]()
    )
    ready = Implementation(entry.target, device=entry.device, dtypes=entry.dtypes)
    assert ready.refuses(torch.zeros(1).bfloat16()) == "it runs on cuda and the tensors are on cpu"
    anywhere = Implementation(entry.target, dtypes=entry.dtypes)
    assert (
        anywhere.refuses(torch.zeros(1))
        == "it takes torch.bfloat16, torch.float16 and the tensors are torch.float32"
    )


def signatures(source: Path, functions: Sequence[str]) -> dict[str, list[list[str]]]:
    """Arguments and defaults of ``functions`` in a source file, as the golden file has them."""
    found = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            others = (node.args.posonlyargs, node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
            assert not any(others)
            names = [argument.arg for argument in node.args.args]
            plain = len(names) - len(node.args.defaults)
            defaults = [[], *([ast.unparse(value)] for value in node.args.defaults)]
            found[node.name] = [[name, *defaults[max(0, i - plain + 1)]] for i, name in enumerate(names)]
    return found


@pytest.mark.parametrize(
    "module", ["flash_attn.flash_attn_interface", "flash_attn_interface", "flash_attn.cute.interface"]
)
def test_an_installed_package_has_the_arguments_that_are_passed(module: str) -> None:
    top, *rest = module.split(".")
    found = importlib.util.find_spec(top)
    if found is None or found.origin is None:
        pytest.skip(f"{top} is not installed")
    source = Path(found.origin).parent.joinpath(*rest).with_suffix(".py") if rest else Path(found.origin)
    names = [name.rsplit(".", 1) for name in SIGNATURES]
    wanted = [function for place, function in names if place == module]
    got = signatures(source, wanted)
    for function in wanted:
        golden = {argument for argument, *_ in SIGNATURES[f"{module}.{function}"]}
        assert {argument for argument, *_ in got[function]} >= golden


def test_arguments_are_read_from_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def f(q, k=None, *, v): ...\ndef g(q, scale: float = 1.0, w=(-1, -1)): ...\n"
    )
    assert signatures(tmp_path / "a.py", ["g"]) == {"g": [["q"], ["scale", "1.0"], ["w", "(-1, -1)"]]}
    with pytest.raises(AssertionError):
        signatures(tmp_path / "a.py", ["f"])


def serving(why_not: Callable[[], str]) -> None:
    if why_not():
        pytest.skip(why_not())


def bounded(got: Tensor, usual: Tensor, true: Tensor) -> None:
    floor = torch.finfo(got.dtype).eps * true.abs().max()
    assert (got.double() - true).abs().max() <= MARGIN * max((usual.double() - true).abs().max(), floor)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_packed_attention_by_the_package_itself(dtype: torch.dtype) -> None:
    serving(packages.why_not_packed)
    lengths, parent = [130, 60, 41, 77, 300, 0], [-1, 0, 0, 0, -1, 4]
    rows = PackedRows(torch.tensor([0, *lengths]).cumsum(0).int().cuda(), torch.tensor(parent).int().cuda())
    tensors = [torch.randn(sum(lengths), heads, 64, device="cuda").to(dtype) for heads in (6, 2, 2, 6)]

    def run(impl: str, kind: torch.dtype) -> list[Tensor]:
        *leaves, grad = (x.to(kind).requires_grad_() for x in tensors)
        out = packed_attention(*leaves, rows, scale=0.125, impl=impl)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.detach())]

    runs = (run("flash", dtype), run("torch", dtype), run("torch", torch.float64))
    for parts in zip(*runs, strict=True):
        bounded(*parts)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_cached_attention_by_the_package_itself(dtype: torch.dtype) -> None:
    serving(packages.why_not_cached)
    tables = (
        [0, 1, 2, 9],
        [0, 1, 1],
        [[0] * 9, list(range(9))],
        [0, 130],
        [[9] * 3, [10, 11, 9], [12, 9, 9]],
        [7, 30, 16],
    )
    rows = CacheRows(*(torch.tensor(table).int().cuda() for table in tables))
    rows.check(9, 13, 16)
    tensors = [
        torch.randn(shape, device="cuda").to(dtype)
        for shape in ((9, 6, 64), (13, 2, 16, 64), (13, 2, 16, 64))
    ]
    got, usual, true = (
        cached_attention(*(x.to(kind) for x in tensors), rows, scale=0.125, impl=impl)
        for impl, kind in (("flash", dtype), ("torch", dtype), ("torch", torch.float64))
    )
    bounded(got, usual, true)
