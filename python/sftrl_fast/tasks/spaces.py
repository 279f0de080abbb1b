"""The spaces of model text, and of what a model is shown."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space, Text

LOOKS = ("text", "image")
"""How an item may be shown."""

Observation = Any
"""A text, or with pictures ``{"text": text, "image": uint8 [size, size, 3]}``."""

_SAMPLED_LENGTH = 64


class AnyText(Text):
    """Every string: of any length, of any Unicode code points, lone surrogates included.

    A model may write anything, so no answer may fall outside the action space. Samples are printable ASCII of
    0 to 64 characters.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(_SAMPLED_LENGTH, min_length=0, charset=string.printable[:95], seed=seed)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        """False: no array of a fixed size holds every string."""
        return False

    def __eq__(self, other: object, /) -> bool:
        return isinstance(other, AnyText)

    def __repr__(self) -> str:
        return "AnyText()"


def observation_space(size: int | None) -> Space[Any]:
    """The space of one :data:`Observation`: a text, and unless ``size`` is None a picture of as many pixels a side."""
    if size is None:
        return AnyText()
    return Dict({"text": AnyText(), "image": Box(0, 255, (size, size, 3), np.uint8)})
