"""The one place where an op meets its implementations.

Order of choice: the ``impl=`` argument, then the environment variable ``SFTRL_IMPL``, then ``auto``. An
explicit choice never falls back: if it cannot run here, :class:`~sftrl_fast.core.UserError` says what can and
why the rest cannot. ``auto`` takes the first name of :data:`IMPLS` that can run and is made for the tensor's device
and type, and logs its choice once an op, device and type.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.flash.packages import why_not_cached, why_not_packed

logger = logging.getLogger(__name__)

IMPLS = ("flash", "triton", "cpp", "torch")
"""Names an implementation may have, the one ``auto`` prefers first."""

HALF_AND_SINGLE = (torch.float32, torch.bfloat16)
GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _always() -> str:
    return ""


@cache
def _no_extension() -> str:
    return "" if find_spec("sftrl_fast._C") else "the extension sftrl_fast._C was not built"


@cache
def _no_triton() -> str:
    if find_spec("triton") is None:
        return "the package triton is not installed (extra: cuda)"
    if torch.cuda.is_available() or interpreting():
        return ""
    return "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"


def interpreting() -> bool:
    """Whether Triton kernels run on the CPU, one program after another: for tests of what they compute."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, slots=True)
class Implementation:
    """Where a function stands, what it is made for, and whether this machine can run it."""

    target: str
    """``module:function``, imported when first chosen."""
    why_not: Callable[[], str] = _always
    """The reason it cannot run here; the empty string if it can."""
    device: str = ""
    """Type of device it runs on; the empty string means any."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Element types it takes; empty means any."""

    def refuses(self, tensor: Tensor | None) -> str:
        """The reason it cannot work on ``tensor`` here; the empty string if it can."""
        reason = self.why_not()
        if reason or tensor is None:
            return reason
        if self.device and tensor.device.type != self.device and not self._interpreted(tensor):
            return f"it runs on {self.device} and the tensors are on {tensor.device.type}"
        if self.dtypes and tensor.dtype not in self.dtypes:
            return f"it takes {', '.join(map(str, self.dtypes))} and the tensors are {tensor.dtype}"
        return ""

    def _interpreted(self, tensor: Tensor) -> bool:
        of_triton = self.target.startswith("sftrl_fast.kernels.")
        return of_triton and tensor.device.type == "cpu" and interpreting()


def _cpp(target: str, dtypes: tuple[torch.dtype, ...] = HALF_AND_SINGLE) -> Implementation:
    return Implementation(f"sftrl_fast.ops.cpp.{target}", _no_extension, "cpu", dtypes)


def _triton(target: str) -> Implementation:
    return Implementation(f"sftrl_fast.kernels.{target}", _no_triton, "cuda", GPU_TYPES)


def _flash(target: str, why_not: Callable[[], str]) -> Implementation:
    return Implementation(f"sftrl_fast.ops.flash.{target}", why_not, "cuda", (torch.bfloat16, torch.float16))


def _torch(target: str) -> Implementation:
    return Implementation(f"sftrl_fast.ops.{target}")


# Each op has its torch reference; what is not listed does not exist.
OPS: dict[str, dict[str, Implementation]] = {
    "logprob": {
        "triton": _triton("logprob:logprob_triton"),
        "cpp": _cpp("logprob:logprob_cpp"),
        "torch": _torch("logprob:logprob_torch"),
    },
    "group_advantage": {
        "triton": _triton("advantage:group_advantage_triton"),
        "cpp": _cpp("advantage:group_advantage_cpp", ()),
        "torch": _torch("advantage:group_advantage_torch"),
    },
    "gae": {
        "triton": _triton("advantage:gae_triton"),
        "cpp": _cpp("advantage:gae_cpp", ()),
        "torch": _torch("advantage:gae_torch"),
    },
    "sample": {
        "triton": _triton("sample:sample_triton"),
        "cpp": _cpp("sample:sample_cpp"),
        "torch": _torch("sample:sample_torch"),
    },
    "cached_attention": {
        "flash": _flash("cached_attention:cached_attention_flash", why_not_cached),
        "triton": _triton("cached_attention:cached_attention_triton"),
        "cpp": _cpp("cached_attention:cached_attention_cpp"),
        "torch": _torch("attention:cached_attention_torch"),
    },
    "packed_attention": {
        "flash": _flash("packed_attention:packed_attention_flash", why_not_packed),
        "triton": _triton("packed_attention:packed_attention_triton"),
        "cpp": _cpp("packed_attention:packed_attention_cpp"),
        "torch": _torch("attention:packed_attention_torch"),
    },
    "rms_norm": {
        "triton": _triton("rms_norm:rms_norm_triton"),
        "cpp": _cpp("rms_norm:rms_norm_cpp"),
        "torch": _torch("rms_norm:rms_norm_torch"),
    },
    "rms_norm_backward": {
        "cpp": _cpp("rms_norm:rms_norm_backward_cpp"),
        "torch": _torch("rms_norm:rms_norm_backward_torch"),
    },
    "linear": {"cpp": _cpp("linear:CppLinear"), "torch": _torch("linear:TorchLinear")},
    "swiglu": {
        "triton": _triton("swiglu:swiglu_triton"),
        "cpp": _cpp("swiglu:swiglu_cpp"),
        "torch": _torch("swiglu:swiglu_torch"),
    },
    "swiglu_backward": {
        "cpp": _cpp("swiglu:swiglu_backward_cpp"),
        "torch": _torch("swiglu:swiglu_backward_torch"),
    },
    "rope_cache": {
        "triton": _triton("rope_cache:rope_cache_triton"),
        "cpp": _cpp("rope_cache:rope_cache_cpp"),
        "torch": _torch("rope_cache:rope_cache_torch"),
    },
    "image_tiles": {
        "cpp": _cpp("image_tiles:image_tiles_cpp", (torch.uint8,)),
        "torch": _torch("image_tiles:image_tiles_torch"),
    },
    "fingerprints": {
        "cpp": _cpp("fingerprint:fingerprints_cpp", ()),
        "torch": _torch("fingerprint:fingerprints_torch"),
    },
}


@dataclass(frozen=True, slots=True)
class Availability:
    """One line of ``sftrl-fast doctor``."""

    op: str
    impl: str
    available: bool
    reason: str


def availability(op: str | None = None, tensor: Tensor | None = None) -> list[Availability]:
    """A row for each op (or for one) and each name of :data:`IMPLS`, with the reason where it cannot run.

    With ``tensor``, also where it could not work on that tensor's device and type.
    """
    rows = []
    for name in OPS if op is None else (op,):
        for impl in IMPLS:
            entry = OPS[name].get(impl)
            reason = "not implemented in this version" if entry is None else entry.refuses(tensor)
            rows.append(Availability(name, impl, not reason, reason))
    return rows


def choose(op: str, impl: str | None = None, tensor: Tensor | None = None) -> str:
    """The name of the implementation that a call with this ``impl`` argument runs.

    ``tensor`` stands for the call's device and type; without it the answer is this machine's best: for CUDA
    where there is a device, else for the CPU.
    """
    source, wanted = (
        ("impl", impl) if impl is not None else ("SFTRL_IMPL", os.environ.get("SFTRL_IMPL", "auto"))
    )
    if wanted == "auto":
        return _best(op, tensor)
    entry = OPS[op].get(wanted)
    if entry is None or entry.refuses(tensor):
        rows = availability(op, tensor)
        usable = ", ".join(row.impl for row in rows if row.available)
        reasons = "; ".join(f"{row.impl}: {row.reason}" for row in rows if not row.available)
        raise UserError(f"{source}={wanted!r} cannot run op {op!r}; available: {usable} ({reasons})")
    return wanted


def _best(op: str, tensor: Tensor | None) -> str:
    device = tensor.device.type if tensor is not None else "cuda" if torch.cuda.is_available() else "cpu"
    for impl in IMPLS:
        entry = OPS[op].get(impl)
        # The interpreter is for tests: a GPU kernel is never `auto`'s choice on a CPU.
        if entry is not None and entry.device in ("", device) and not entry.refuses(tensor):
            _log_once(op, impl, device if tensor is None else f"{device}, {tensor.dtype}")
            return impl
    raise AssertionError(f"op {op!r} has no implementation for every machine")


def resolve(op: str, impl: str | None = None, tensor: Tensor | None = None) -> Callable[..., Any]:
    """The function that runs ``op``; raises :class:`UserError` if an explicit choice is not available."""
    return _function(OPS[op][choose(op, impl, tensor)].target)


@cache
def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


_logged: set[tuple[str, str]] = set()


def _log_once(op: str, impl: str, kind: str) -> None:
    if (op, kind) not in _logged:
        _logged.add((op, kind))
        logger.info("op %s: implementation %s (auto; %s)", op, impl, kind)
