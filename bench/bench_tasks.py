"""Environment steps a second in one process: navigation in words and in street views, through both interfaces.

A run walks routes with answers that are right four times in five. ``vector`` is the batched environment, ``single``
one route at a time. Pictures are drawn anew in every run: each walk its own, or one for the eight rows of a group, as
the samples of an item have it. The aims: 20,000 steps a second in words, 300 in pictures of 448 x 448.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np

import sftrl_fast  # noqa: F401  (registers the environments)
from harness import Bench
from sftrl_fast.tasks.navigation.render import street_view

RIGHT_SHARE = 0.8


def answers_of(env: gymnasium.Env | gymnasium.vector.VectorEnv, items: Sequence[int]) -> list[Sequence[str]]:
    return [env.unwrapped.demonstration(int(item)) for item in items]  # type: ignore[union-attr]


def vector(env_id: str, items: np.ndarray) -> tuple[Callable[[], int], int]:
    """A run that walks ``items`` side by side, and the steps it takes."""
    env = gymnasium.make_vec(env_id, num_envs=len(items))
    right = answers_of(env, items)

    def run() -> int:
        rng = np.random.default_rng(0)
        env.reset(options={"index": items})
        place, live, steps = np.zeros(len(items), dtype=np.int64), np.ones(len(items), dtype=bool), 0
        while live.any():
            rows = np.flatnonzero(live)
            good = rng.random(len(rows)) < RIGHT_SHARE
            given = [right[r][place[r]] if ok else "no" for r, ok in zip(rows.tolist(), good, strict=True)]
            *_, terminated, truncated, infos = env.unwrapped.step_rows(rows, given)
            live[rows], place[rows] = ~(terminated | truncated), infos["point"]
            steps += len(rows)
        return steps

    return run, run()


def single(env_id: str, items: np.ndarray) -> tuple[Callable[[], int], int]:
    """The same, a route after the other."""
    env = gymnasium.make(env_id)
    right = answers_of(env, items)

    def run() -> int:
        rng = np.random.default_rng(0)
        steps = 0
        for item, answers in zip(items.tolist(), right, strict=True):
            _, info = env.reset(options={"index": item})
            over = False
            while not over:
                given = answers[info["point"]] if rng.random() < RIGHT_SHARE else "no"
                *_, terminated, truncated, info = env.step(given)
                over = terminated or truncated
                steps += 1
        return steps

    return run, run()


def cold(run: Callable[[], int]) -> Callable[[], int]:
    def drawn() -> int:
        street_view.cache_clear()
        return run()

    return drawn


def main() -> None:
    bench = Bench("tasks", __doc__ or "")
    scale = 1 if not bench.args.quick else 4
    rng = np.random.default_rng(0)
    items = rng.integers(1000, size=1024 // scale)
    for case, make in (("words", "text"), ("pictures of 448", "image")):
        env_id = f"sftrl/navigation-{make}-absolute-train-v1"
        count = len(items) if make == "text" else 64 // scale
        batched, steps = vector(env_id, items[:count])
        alone, steps_alone = single(env_id, items[:count])
        drawn = make == "image"
        sides = {"vector": cold(batched) if drawn else batched, "single": cold(alone) if drawn else alone}
        # Chance decides a little differently how many tries a run takes; rates are of the vector side's steps.
        assert abs(steps - steps_alone) < 0.05 * steps
        bench.compare_rate(case, "steps a second", "1/s", sides, work=steps, ratio_to="single", repeat=3)
    for case, make in (("words, groups of 8", "text"), ("pictures of 448, groups of 8", "image")):
        env_id = f"sftrl/navigation-{make}-absolute-train-v1"
        groups = np.repeat(items[: 16 // scale], 8)
        batched, steps = vector(env_id, groups)
        alone, _ = single(env_id, groups)
        sides = {"vector": cold(batched), "single": cold(alone)}
        bench.compare_rate(case, "steps a second", "1/s", sides, work=steps, ratio_to="single", repeat=3)
    bench.finish()


if __name__ == "__main__":
    main()
