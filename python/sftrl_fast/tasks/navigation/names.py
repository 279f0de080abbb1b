"""Names of made-up places and streets. Every word is a plain one, so that a small tokenizer can hold them all."""

from __future__ import annotations

import numpy as np

ADJECTIVES = (
    "Amber", "Blue", "Bright", "Bronze", "Copper", "Coral", "Crimson", "Crystal", "Emerald", "Gentle",
    "Golden", "Grand", "Green", "Happy", "Hidden", "Humble", "Ivory", "Jade", "Little", "Lucky",
    "Merry", "Misty", "Noble", "Old", "Pearl", "Quiet", "Red", "Royal", "Rustic", "Sapphire",
    "Scarlet", "Silent", "Silver", "Sunny", "Velvet", "Violet", "White", "Wild", "Winter", "Young",
)  # fmt: skip
NOUNS = (
    "Acorn", "Anchor", "Arrow", "Badger", "Barrel", "Beacon", "Bell", "Bridge", "Castle", "Cedar",
    "Clover", "Crane", "Dolphin", "Dragon", "Eagle", "Elm", "Falcon", "Fern", "Fox", "Garden",
    "Harbor", "Heron", "Ivy", "Lantern", "Lark", "Laurel", "Lion", "Lotus", "Maple", "Meadow",
    "Moon", "Oak", "Olive", "Orchid", "Otter", "Owl", "Pine", "Raven", "River", "Rose",
    "Ship", "Star", "Stone", "Swan", "Thistle", "Tiger", "Tulip", "Wheel", "Willow", "Wolf",
)  # fmt: skip
KINDS = (
    "Bakery", "Bank", "Bookshop", "Cafe", "Church", "Cinema", "Clinic", "Florist", "Gallery", "Hotel",
    "Library", "Market", "Museum", "Pharmacy", "School", "Theater",
)  # fmt: skip
STREETS = ("Street", "Avenue", "Lane", "Road")


class Names:
    """Names that differ from each other, drawn from ``rng``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._taken: set[str] = set()

    def place(self) -> str:
        return self._new(ADJECTIVES, NOUNS, KINDS)

    def street(self) -> str:
        return self._new(ADJECTIVES, NOUNS, STREETS)

    def _new(self, *lists: tuple[str, ...]) -> str:
        while True:
            name = " ".join(words[int(self._rng.integers(len(words)))] for words in lists)
            if name not in self._taken:
                self._taken.add(name)
                return name
