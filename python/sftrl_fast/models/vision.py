"""How a family of models sees pictures: what an adapter offers to the chat, the trainer and the engines.

A picture travels as the array the environment made, beside the tokens: the i-th image token of a row stands for the
row's i-th picture. Only the adapter knows what a model makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from sftrl_fast.core import Image

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
    def picture_tokens(self) -> int:
        """Positions that a picture takes in the model, at most: what it counts in a batch's budget."""

    def expand(self, ids: list[int], image: Image) -> list[int]:
        """A message's tokens, its image token repeated as often as the model wants for ``image``.

        Raises :class:`~sftrl_fast.core.UserError` if there is not exactly one, and for a picture that cannot be used.
        """

    def packed(self, model: nn.Module, tokens: PackedTokens) -> dict[str, Any]:
        """Keyword arguments of the decoder, beside or instead of the usual ones, for packed rows with pictures."""

    def generating(self, model: nn.Module, ids: Tensor, images: Sequence[Sequence[Image]]) -> Generating:
        """For rows of tokens ``[B, L]``, each with at least one picture."""

    def cells(self, model: nn.Module, images: Sequence[Image]) -> list[Cells]:
        """What the engine keeps of each picture."""

    def seen(self, context: npt.NDArray[np.int64], pictures: int) -> tuple[npt.NDArray[np.int64], Bools]:
        """Which of a context's ``pictures`` each token sees, from 0, -1 for none, and whether it is at or behind it.

        Raises :class:`~sftrl_fast.core.UserError` if image tokens are more or fewer.
        """

    def parts(self, model: nn.Module) -> dict[str, list[nn.Module]]:
        """What :data:`PARTS` name of ``model``; together they are the whole model."""

    def save(self, folder: Path) -> None:
        """Write the settings into a model's folder, as transformers keeps them."""


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
