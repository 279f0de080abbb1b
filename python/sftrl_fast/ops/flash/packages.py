"""Which FlashAttention package serves which op on this machine, or why none does.

Found by the names of their distributions, because two of them share the module ``flash_attn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from sftrl_fast.core import UserError


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution, the least version whose calls are known here, and the compute capabilities it is made for."""

    name: str
    least: tuple[int, int]
    majors: tuple[int, ...]
    extra: str = ""
    """The extra of this package that brings it."""

    def why_not(self) -> str:
        """The reason it cannot run here; the empty string if it can."""
        try:
            found = version(self.name)
        except PackageNotFoundError:
            return f"{self.name} is not installed" + (f" (extra: {self.extra})" if self.extra else "")
        major, minor = found.split(".")[:2]
        if (int(major), int(minor)) < self.least:
            return f"{self.name} {found} is installed, needed: {'.'.join(map(str, self.least))} or later"
        if not torch.cuda.is_available():
            return f"{self.name} {found} is installed, and there is no CUDA device"
        capability = torch.cuda.get_device_capability()
        if capability[0] not in self.majors:
            return f"{self.name} is not for compute capability {capability[0]}.{capability[1]}"
        return ""


_TWO = Package("flash-attn", (2, 8), (8, 9, 10, 12), "cuda")
_THREE = Package("flash-attn-3", (3, 0), (8, 9))
_FOUR = Package("flash-attn-4", (4, 0), (9, 10, 11))
PACKED = (_FOUR, _TWO)
"""Packages that compute gradients from a given output and its log-sums, the one to prefer first."""
CACHED = (_FOUR, _THREE)
"""Packages that read a cache in pages of any size. FlashAttention-2 wants pages of 256 tokens."""


def _why_not(packages: Sequence[Package]) -> str:
    reasons = [package.why_not() for package in packages]
    return "" if "" in reasons else "; ".join(reasons)


def _chosen(packages: Sequence[Package]) -> str:
    for package in packages:
        if not package.why_not():
            return package.name
    raise UserError(f"impl 'flash' cannot run: {_why_not(packages)}")


@cache
def why_not_packed() -> str:
    """The reason ``packed_attention`` cannot run by a FlashAttention package here; the empty string if it can."""
    return _why_not(PACKED)


@cache
def why_not_cached() -> str:
    """The reason ``cached_attention`` cannot run by a FlashAttention package here; the empty string if it can."""
    return _why_not(CACHED)


@cache
def packed_package() -> str:
    """Name of the distribution that ``packed_attention`` calls; :class:`UserError` if there is none."""
    return _chosen(PACKED)


@cache
def cached_package() -> str:
    """Name of the distribution that ``cached_attention`` calls; :class:`UserError` if there is none."""
    return _chosen(CACHED)
