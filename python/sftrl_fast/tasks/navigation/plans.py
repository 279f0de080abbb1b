"""Street plans: where the crossings of a city lie. Each is a lattice of rows and columns, bent.

Each row and each column of the lattice is a street. A plan gives the crossings' places in metres, east and north
of the middle, ``[rows, columns, 2]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """``closed``: the last column is followed by the first (spokes of a ring). ``missing``: the share of street
    pieces that are left out. ``diagonal``: one avenue cuts through the lattice's corners."""

    name: str
    places: Callable[[np.random.Generator, int, int], Places]
    closed: bool = False
    missing: float = 0.04
    diagonal: bool = False


def _lattice(rng: np.random.Generator, rows: int, columns: int, low: float, high: float) -> Places:
    """Blocks of sides ``low`` to ``high`` metres; row 0 is the southernmost."""
    north = np.cumsum(rng.uniform(low, high, rows))
    east = np.cumsum(rng.uniform(low, high, columns))
    return np.stack(np.meshgrid(east - east.mean(), north - north.mean()), axis=-1)


def _turned(places: Places, degrees: float) -> Places:
    angle = np.radians(degrees)
    return places @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _grid(rng: np.random.Generator, rows: int, columns: int) -> Places:
    return _lattice(rng, rows, columns, 60, 130) + rng.normal(0, 2, (rows, columns, 2))


def _tilted(rng: np.random.Generator, rows: int, columns: int) -> Places:
    return _turned(_grid(rng, rows, columns), rng.uniform(20, 40))


def _organic(rng: np.random.Generator, rows: int, columns: int) -> Places:
    return _lattice(rng, rows, columns, 70, 120) + rng.uniform(-28, 28, (rows, columns, 2))


def _slanted(rng: np.random.Generator, rows: int, columns: int) -> Places:
    """Streets that cross at about 60 degrees, as on a hillside."""
    places = _grid(rng, rows, columns)
    return places @ np.array([[1.0, 0.0], [0.5, 0.9]])


def _rings(rng: np.random.Generator, rows: int, columns: int, low: float, high: float) -> Places:
    """Rows are rings from the middle outwards, columns spokes at angles ``low`` to ``high``."""
    angles = np.radians(np.linspace(low, high, columns) + rng.normal(0, 1.0, columns))
    radii = 160 + np.cumsum(rng.uniform(60, 110, rows))
    return radii[:, None, None] * np.stack([np.sin(angles), np.cos(angles)], axis=-1)


def _radial(rng: np.random.Generator, rows: int, columns: int) -> Places:
    return _rings(rng, rows, columns, 0, 360 - 360 / columns) + rng.normal(0, 2, (rows, columns, 2))


def _canals(rng: np.random.Generator, rows: int, columns: int) -> Places:
    """Half rings around a waterfront; the spokes are the bridges."""
    return _rings(rng, rows, columns, 85, 275) + rng.normal(0, 3, (rows, columns, 2))


def _banks(rng: np.random.Generator, rows: int, columns: int) -> Places:
    """Two grids on the banks of a river, turned against each other."""
    places = _grid(rng, rows, columns)
    half = rows // 2
    places[half:] = _turned(places[half:], 24.0)
    places[half:, :, 1] += 140
    return places


def _crescents(rng: np.random.Generator, rows: int, columns: int) -> Places:
    """A grid whose rows bow, as around a bay."""
    places = _grid(rng, rows, columns)
    width = np.abs(places[..., 0]).max()
    places[..., 1] += 220 * np.cos(places[..., 0] / width * np.pi)
    return places


PLANS = {
    plan.name: plan
    for plan in (
        Plan("grid", _grid),
        Plan("tilted", _tilted, diagonal=True),
        Plan("organic", _organic, missing=0.12),
        Plan("slanted", _slanted),
        Plan("radial", _radial, closed=True),
        Plan("canals", _canals, missing=0.08),
        Plan("banks", _banks),
        Plan("crescents", _crescents, diagonal=True),
    )
}
