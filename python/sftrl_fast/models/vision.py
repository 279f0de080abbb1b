"""How a family of models sees pictures: what an adapter offers to the chat, the trainer and the engines.

A picture travels as the array the environment made, beside the tokens: the i-th image token of a row, or the i-th run
of them, stands for the row's i-th picture. Only the adapter knows what a model makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from sftrl_fast.core import Image, UserError

if TYPE_CHECKING:
    from sftrl_fast.models.packed import PackedTokens


PARTS = ("vision", "projector", "language")
"""The vision tower, what maps it to the language model's width, and the rest."""


@dataclass(frozen=True, slots=True)
class Generating:
    """What ``generate`` needs to continue left-padded rows with pictures."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments."""
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Layers of the cache that are full from the start: keys and values, ``[B, heads, S, Dh]``."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A picture's keys and values."""

    layers: list[tuple[Tensor, Tensor]]
    """``[Hkv, S, Dh]`` each, of every layer that attends to pictures."""
    length: int
    """Of the S positions, those that a token behind the picture sees; one ahead of it sees all."""


Bools = npt.NDArray[np.bool_]


class Vision(Protocol):
    """The adapter of one model's family and settings. It holds no weights."""

    @property
    def image_token(self) -> str:
        """What the chat template writes where a picture goes."""

    @property
    def undrawn(self) -> tuple[int, ...]:
        """Tokens with a logit that no answer may hold, for they stand for pictures."""

    def positions(self, image: Image) -> int:
        """What a picture counts in a batch's budget beside its row's tokens."""

    def expand(self, ids: list[int], image: Image) -> list[int]:
        """A message's tokens, its image token repeated as often as the model wants for ``image``.

        Raises :class:`~sftrl_fast.core.UserError` if there is not exactly one, and for a picture that cannot be used.
        """

    def packed(self, model: nn.Module, tokens: PackedTokens) -> dict[str, Any]:
        """Keyword arguments of the decoder, beside or instead of the usual ones, for packed rows with pictures."""

    def generating(self, model: nn.Module, ids: Tensor, images: Sequence[Sequence[Image]]) -> Generating:
        """For rows of tokens ``[B, L]``, each with at least one picture."""

    def parts(self, model: nn.Module) -> dict[str, list[nn.Module]]:
        """What :data:`PARTS` name of ``model``; together they are the whole model."""

    def save(self, folder: Path) -> None:
        """Write the settings into a model's folder, as transformers keeps them."""


@runtime_checkable
class CrossVision(Vision, Protocol):
    """Of models whose tokens attend to pictures in layers of their own: what the native engine asks for besides."""

    @property
    def picture_tokens(self) -> int:
        """Positions of a picture in those layers, at most."""

    def cells(self, model: nn.Module, images: Sequence[Image]) -> list[Cells]:
        """What the engine keeps of each picture."""

    def seen(self, context: npt.NDArray[np.int64], pictures: int) -> tuple[npt.NDArray[np.int64], Bools]:
        """Which of a context's ``pictures`` each token sees, from 0, -1 for none, and whether it is at or behind it.

        Raises :class:`~sftrl_fast.core.UserError` if image tokens are more or fewer.
        """


@dataclass(frozen=True, slots=True)
class Family:
    """What a folder with a vision-language model is read with."""

    model: type
    processor: type
    adapter: Callable[[Any, Any, Any], Vision]
    """From configuration, tokenizer and image processor; :class:`~sftrl_fast.core.UserError` if they do not match."""


def check_image(image: Image) -> None:
    """``UserError`` if ``image`` is no picture."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"image is {image.dtype} {list(image.shape)}; needed: uint8 [height, width, 3]")


def check_one_token(ids: Sequence[int], image_id: int) -> None:
    """``UserError`` if a message's tokens hold ``image_id`` more or less than once."""
    if (count := list(ids).count(image_id)) != 1:
        raise UserError(
            f"tokenizer's chat template makes {count} image tokens of a message with a picture; needed: one"
        )


def distinct(images: Sequence[Image]) -> tuple[list[Image], list[int]]:
    """Each picture once, and the place of each of ``images`` in that list."""
    places: dict[int, int] = {}
    found: list[Image] = []
    for image in images:
        if id(image) not in places:
            places[id(image)] = len(found)
            found.append(image)
    return found, [places[id(image)] for image in images]


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """The pictures of packed tokens, in the order of their image tokens."""

    vision: Vision
    images: tuple[Image, ...]


class CrossAttention(Protocol):
    """Attention of packed tokens to pictures, in the place of a module's own."""

    def covers(self, module: nn.Module) -> bool:
        """Whether ``module`` attends to pictures."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """``[1, heads, T, Dh]`` and ``[1, kv heads, pictures x S, Dh]`` in, ``[1, T, heads, Dh]`` out."""
