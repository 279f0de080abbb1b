"""Matrix product with a weight that is used many times: packed once, multiplied until the weight changes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import resolve


class PackedLinear(ABC):
    """A weight ``[N, K]`` and its bias ``[N]``, as the implementation that multiplies by them wants them.

    Made by :func:`pack_linear`. ``impl`` names the implementation, ``shape`` is ``(N, K)``.
    """

    impl: str

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self.dtype, self.device = weight.dtype, weight.device
        self.has_bias = bias is not None
        self._pack(weight.detach(), None if bias is None else bias.detach())

    def update(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take the values of ``weight`` and ``bias`` as they are now, such as after an optimizer's step.

        Raises :class:`UserError` if shape, type, device or the presence of a bias differ from those packed.
        """
        _check_weight(weight, bias)
        came = (weight.shape, weight.dtype, weight.device, bias is not None)
        if came != (self.shape, self.dtype, self.device, self.has_bias):
            raise UserError(
                f"weight is {_described(weight)} and bias {'absent' if bias is None else 'given'}; needed, as when "
                f"packed: {self.dtype} {list(self.shape)} on {self.device}, bias "
                f"{'given' if self.has_bias else 'absent'}"
            )
        self._pack(weight.detach(), None if bias is None else bias.detach())

    @abstractmethod
    def _pack(self, weight: Tensor, bias: Tensor | None) -> None: ...

    @abstractmethod
    def multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        """``x @ weight.T + bias``; arguments as checked by :func:`linear`."""


def pack_linear(weight: Tensor, bias: Tensor | None = None, *, impl: str | None = None) -> PackedLinear:
    """Prepare ``weight`` ``[N, K]`` and ``bias`` ``[N]`` for :func:`linear`, for the implementation chosen here.

    Both share one floating type and device. The torch implementation refers to them and sees later changes; others
    copy, and :meth:`PackedLinear.update` copies again.

    Raises :class:`UserError` for wrong shapes, types or devices.
    """
    _check_weight(weight, bias)
    packed: PackedLinear = resolve("linear", impl, weight)(weight, bias)
    return packed


@torch.no_grad()
def linear(
    x: Tensor, packed: PackedLinear, *, out_dtype: torch.dtype | None = None, impl: str | None = None
) -> Tensor:
    """``x @ weight.T + bias``, ``[T, N]``, for ``x`` ``[T, K]`` of the packed type and device; inference only.

    The result has the type of ``x``, or float32 if ``out_dtype`` asks for it; sums run in float32 either way. With
    ``impl="cpp"`` a row's result is the same bits whatever the other rows are and however many.
    ``impl``, if given, must be what the weight was packed for. Raises :class:`UserError` for that and for wrong
    shapes, types or devices.
    """
    if impl not in (None, "auto", packed.impl):
        raise UserError(f"impl is {impl!r} and the weight was packed for {packed.impl!r}; needed: the same")
    if x.dim() != 2 or x.shape[1] != packed.shape[1] or x.dtype != packed.dtype or x.device != packed.device:
        needed = f"{packed.dtype} [T, {packed.shape[1]}] on {packed.device}"
        raise UserError(f"x is {_described(x)}; needed: {needed}")
    if out_dtype not in (None, x.dtype, torch.float32):
        raise UserError(f"out_dtype is {out_dtype}; needed: None, {x.dtype} or torch.float32")
    return packed.multiply(x, out_dtype or x.dtype)


class TorchLinear(PackedLinear):
    """The plain torch implementation: refers to the weight itself."""

    impl = "torch"

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        if out_dtype == x.dtype:
            return F.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(out_dtype)
        return F.linear(x.to(out_dtype), self.weight.to(out_dtype), bias)


def _check_weight(weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise UserError(f"weight is {_described(weight)}; needed: floating [N, K] with N > 0 and K > 0")
    if bias is not None and (
        bias.shape != weight.shape[:1] or bias.dtype != weight.dtype or bias.device != weight.device
    ):
        needed = f"{weight.dtype} [{weight.shape[0]}] on {weight.device}"
        raise UserError(f"bias is {_described(bias)}; needed: {needed}")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
