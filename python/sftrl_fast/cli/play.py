"""``sftrl-fast play``: answer a task's items yourself, in a terminal or from a file of answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftrl_fast.cli.settings import output_file
from sftrl_fast.core import UserError

if TYPE_CHECKING:
    from sftrl_fast.tasks.navigation.env import NavigationEnv
    from sftrl_fast.tasks.navigation.sheet import Tried


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "play",
        help="answer items yourself; a walk is drawn as a map",
        description="Reads an answer a line from the terminal, or from a pipe.",
        allow_abbrev=False,
    )
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    walk = tasks.add_parser(
        "navigation",
        help="walk a route",
        description="An answer is an action: forward(), turn_direction(x), stop(), or short f, x, s.",
        allow_abbrev=False,
    )
    walk.add_argument(
        "--set", dest="routes", default="vln-mini", metavar="NAME", help="set of routes (vln-mini)"
    )
    walk.add_argument(
        "--language", choices=("absolute", "relative"), default="absolute", help="of the actions"
    )
    walk.add_argument("--data", default="", metavar="DIR", help="folder of route files")
    walk.add_argument("--expert", action="store_true", help="let the expert walk")
    walk.add_argument("--map", type=output_file, metavar="FILE.png", help="draw the walk with its views")
    walk.set_defaults(run=run_navigation, takes_settings=False)
    cards = tasks.add_parser("points", help="play a hand of cards", description="An answer is a formula.",
                             allow_abbrev=False)  # fmt: skip
    cards.add_argument(
        "--set", dest="hands", default="id", metavar="NAME", help="id, seen, rule-ood (default id)"
    )
    cards.add_argument("--expert", action="store_true", help="show a solution")
    cards.set_defaults(run=run_points, takes_settings=False)
    for task in (walk, cards):
        task.add_argument("--index", type=int, default=0, metavar="N", help="item of the set (default 0)")
        task.add_argument("--tries", type=int, metavar="N", help="answers a decision may take")


def run_points(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    import sftrl_fast  # noqa: F401  (registers the environments)
    from sftrl_fast.tasks.general_points.prompt import answer

    env = _make(f"sftrl/points-text-{args.hands}-v1", args, 5)
    text, _ = env.reset(options={"index": args.index})
    ranks = env.items[args.index].tolist()
    lines = _lines("formula> ")
    over = False
    while not over:
        print(text)
        if args.expert:
            given = env.demonstration(args.index)
            print(given)
        else:
            formula = next(lines, None)
            if formula is None:
                return 0
            given = answer(ranks, env.rule, formula.partition("=")[0].strip(), env.target)
        text, reward, terminated, truncated, info = env.step(given)
        over = terminated or truncated
        print(f"[reward {reward:+g}] {info['message']}")
    print("solved" if info["success"] else f"not solved; for instance {env.demonstration(args.index)}")
    return 0


def run_navigation(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    import sftrl_fast  # noqa: F401  (registers the environments)
    from sftrl_fast.tasks.navigation.prompt import answer
    from sftrl_fast.tasks.navigation.sheet import Tried

    options = {"data": args.data} if args.data else {}
    env = _make(f"sftrl/navigation-text-{args.language}-{args.routes}-v1", args, 2, **options)
    text, info = env.reset(options={"index": args.index})
    rail = env.rail(args.index)
    tried: list[Tried] = []
    actions: tuple[str, ...] = ()
    lines = _lines("action> ")
    over = False
    while not over:
        print(text)
        step = rail.steps[info["point"]]
        line = step.action if args.expert else next(lines, None)
        if line is None:
            break
        action = _action(line, env)
        if args.expert:
            print(f"> {action}")
        before = info["point"]
        text, reward, terminated, truncated, info = env.step(
            answer(step.observation, step.instruction, action)
        )
        over = terminated or truncated
        actions = (*actions, action)
        print(f"[reward {reward:+g}] {info['message']}")
        if over or info["point"] != before:
            tried.append(Tried(actions, info["right"]))
            actions = ()
    if over:
        print("arrived" if info["success"] else "arrived, but the route counts as failed")
    if args.map is not None:
        _draw(args.map, env, args.index, tried)
    return 0


def _make(env_id: str, args: argparse.Namespace, tries: int, **options: Any) -> Any:
    import gymnasium

    try:
        env = gymnasium.make(
            env_id, verify_iter=args.tries if args.tries is not None else tries, **options
        ).unwrapped
    except gymnasium.error.Error:
        raise UserError(f"--set names no set of this task: {env_id} is not registered") from None
    return env


def _lines(prompt: str) -> Iterator[str]:
    """Lines of the terminal, with a prompt, or of a pipe, without; an end of input ends them."""
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()


def _action(line: str, env: NavigationEnv) -> str:
    from sftrl_fast.tasks.navigation.rules import FORWARD, STOP, turn

    short = {"f": FORWARD, "s": STOP} | {word: turn(word) for word in env.language.words}
    return short.get(line, line)


def _draw(path: Path, env: NavigationEnv, index: int, tried: Sequence[Tried]) -> None:
    from sftrl_fast.tasks.navigation.sheet import draw

    route = env.routes[index]
    shown = not any(spot.pano for spot in route.spots) or (Path(env.data) / "views-exact").is_dir()
    sheet = draw(route, env.rail(index), tried, (lambda spot: env.picture(index, spot)) if shown else None)
    try:
        sheet.save(path)
    except (OSError, ValueError) as fault:
        raise UserError(f"--map {str(path)!r} cannot be written: {fault}; name a .png file") from None
    print(f"map  {path}")
