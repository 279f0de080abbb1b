"""The task environments, one row an id. Variants in and out of distribution are rows, not classes.

Importing :mod:`sftrl_fast` registers them, after which ``gymnasium.make(id)`` and ``gymnasium.make_vec(id)``
find them. An id's version goes up when its results would change.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium

_POINTS = "sftrl_fast.tasks.general_points.env:GeneralPointsEnv"
_POINTS_VECTOR = "sftrl_fast.tasks.general_points.vector_env:GeneralPointsVectorEnv"
_NAVIGATION = "sftrl_fast.tasks.navigation.env:NavigationEnv"
_NAVIGATION_VECTOR = "sftrl_fast.tasks.navigation.vector_env:NavigationVectorEnv"


@dataclass(frozen=True, slots=True)
class TaskRow:
    """An environment id and what it deals; the last four are keywords of the card environments."""

    id: str
    entry_point: str
    vector_entry_point: str
    rule: str
    part: str
    with_face: bool | None = None
    every_order: bool = False

    def kwargs(self) -> dict[str, str | bool | None]:
        return {
            "rule": self.rule,
            "part": self.part,
            "with_face": self.with_face,
            "every_order": self.every_order,
        }


@dataclass(frozen=True, slots=True)
class NavigationRow:
    """A navigation id: what is seen, the language of the actions, the set of routes."""

    look: str
    language: str
    routes: str

    entry_point = _NAVIGATION
    vector_entry_point = _NAVIGATION_VECTOR

    @property
    def id(self) -> str:
        return f"sftrl/navigation-{self.look}-{self.language}-{self.routes}-v1"

    def kwargs(self) -> dict[str, str | bool | None]:
        return {"look": self.look, "language": self.language, "routes": self.routes}


# fmt: off
TASKS = (
    # Under the training rule, hands divided by their numbers.
    TaskRow("sftrl/points-text-train-v1", _POINTS, _POINTS_VECTOR, "face10", "train", every_order=True),
    TaskRow("sftrl/points-text-validation-v1", _POINTS, _POINTS_VECTOR, "face10", "validation"),
    TaskRow("sftrl/points-text-validation-orders-v1", _POINTS, _POINTS_VECTOR, "face10", "validation", None, True),
    TaskRow("sftrl/points-text-seen-v1", _POINTS, _POINTS_VECTOR, "face10", "train"),
    TaskRow("sftrl/points-text-id-v1", _POINTS, _POINTS_VECTOR, "face10", "test"),
    # Under the shifted rule: every solvable hand that holds a face card.
    TaskRow("sftrl/points-text-rule-ood-v1", _POINTS, _POINTS_VECTOR, "face11-13", "all", with_face=True),
    # The paper's protocol: training and in-distribution test deal from the same hands.
    TaskRow("sftrl/points-text-all-v1", _POINTS, _POINTS_VECTOR, "face10", "all", every_order=True),
    TaskRow("sftrl/points-text-all-once-v1", _POINTS, _POINTS_VECTOR, "face10", "all"),
)
# fmt: on

# Navigation: the rule shift is the language of the actions, the visual shift the city.
NAVIGATION_TASKS = tuple(
    NavigationRow(look, language, routes)
    for look in ("text", "image")
    for language in ("absolute", "relative")
    for routes in ("train", "validation", "test", "cities", "vln-mini")
)


def register() -> None:
    """Make every row known to Gymnasium; a second call changes nothing.

    The environments check order and input themselves, so ``gymnasium.make`` adds no wrapper and hands out the
    environment itself, ``num_items``, ``demonstration`` and ``strata`` within reach.
    """
    rows: tuple[TaskRow | NavigationRow, ...] = (*TASKS, *NAVIGATION_TASKS)
    for row in rows:
        if row.id in gymnasium.registry:
            continue
        gymnasium.register(
            row.id,
            entry_point=row.entry_point,
            vector_entry_point=row.vector_entry_point,
            kwargs=row.kwargs(),
            order_enforce=False,
            disable_env_checker=True,
        )
