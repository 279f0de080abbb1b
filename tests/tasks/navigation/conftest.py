"""A folder in the published schema, built out of made-up routes, so that the importer has something to read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sftrl_fast.tasks.navigation.dataset import Route
from sftrl_fast.tasks.navigation.rules import compass
from sftrl_fast.tasks.navigation.sets import made_routes


def record(route: Route) -> dict[str, Any]:
    """A route as the published file has it."""
    keys = [spot for spot in route.spots[1:] if spot.key]
    blocks = [
        "{\n"
        f'    "milestone": "point {number}",\n'
        "    a line without a colon\n"
        f'    "landmarks": "{spot.landmark}",\n'
        f'    "to_next_intersection_heading": "{spot.heading} ({compass(spot.heading)})",\n'
        "}"
        for number, spot in enumerate(keys)
    ]
    return {
        "start_place": {"relocated_geocode": list(route.spots[0].at), "name": "start"},
        "init_heading": route.spots[0].heading,
        "dest_place": {"name": route.destination, "geocode": list(keys[-1].at)},
        "route_results": {
            "geocode_list": [list(spot.at) for spot in keys],
            "landmark_list": [None] * (len(keys) - 1),
        },
        "milestone_info": ",\n".join(blocks),
    }


def panoramas(routes: list[Route]) -> dict[tuple[float, float], str]:
    """A panorama at every point of the routes, in-between points too."""
    places = dict.fromkeys(spot.at for route in routes for spot in route.spots)
    return {place: f"pano_{number:03}-x" for number, place in enumerate(places)}


def write(folder: Path, records: list[dict[str, Any]], mapping: Any, *, views: bool = False) -> Path:
    """``folder`` with its three parts; panoramas are 64 x 32 pixels, a colour each 90 degrees."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "route_infos.json").write_text(json.dumps([records, len(records)]))
    (folder / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(mapping))
    if views:
        (folder / "street_views").mkdir()
        image = Image.fromarray(quarters())
        for pano in mapping.values():
            image.save(folder / "street_views" / f"{pano}.jpg", quality=95)
            (folder / "street_views" / f"{pano}.metadata.json").write_text('{"rotation": 0}')
    return folder


COLOURS = {
    "back-left": (200, 0, 0),
    "left-front": (0, 200, 0),
    "front-right": (0, 0, 200),
    "right-back": (200, 200, 0),
}


def quarters() -> np.ndarray:
    """A panorama whose columns from left to right are the four quarters of a turn, north in the middle."""
    colours = np.array(list(COLOURS.values()), dtype=np.uint8)
    return np.broadcast_to(colours.repeat(16, axis=0)[None], (32, 64, 3)).copy()


@pytest.fixture(scope="session")
def published() -> SimpleNamespace:
    """``routes``, their published ``records`` (new ones at each call), their ``panos``, and :func:`write`."""
    routes = list(made_routes("vln-mini")[:4])
    return SimpleNamespace(
        routes=routes,
        records=lambda: [record(route) for route in routes],
        panos=panoramas(routes),
        write=write,
        quarters=quarters,
        colours=COLOURS,
    )
