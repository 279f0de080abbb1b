"""The space of model text."""

from __future__ import annotations

import string
from typing import Any

from gymnasium.spaces import Text

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
