"""Navigation as a Gymnasium environment: one route, an answer a point, up to ``verify_iter`` tries at each.

:class:`RouteSet` holds what this environment and its vector form (``vector_env.py``) share.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space

from sftrl_fast.core import UserError
from sftrl_fast.tasks.arguments import check_at_least_one, check_choice, check_options, checked_indices
from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.dataset import Route, Spot
from sftrl_fast.tasks.navigation.expert import demonstrate
from sftrl_fast.tasks.navigation.panorama import photograph
from sftrl_fast.tasks.navigation.rail import Rail, build_rail
from sftrl_fast.tasks.navigation.render import VIEWS, Pixels, street_view
from sftrl_fast.tasks.navigation.rules import LANGUAGES
from sftrl_fast.tasks.navigation.sets import SETS, load_routes
from sftrl_fast.tasks.navigation.verifier import REWARDS, Outcome
from sftrl_fast.tasks.navigation.walk import Walk
from sftrl_fast.tasks.phrasing import PHRASINGS, wording
from sftrl_fast.tasks.spaces import LOOKS, AnyText, Observation, observation_space

HEADINGS = ("wrapped", "reference")
SIZES = (64, 2400)
"""Least and largest side of a picture, in pixels."""

_KEYWORDS = "verify_iter, rewards, headings, data, phrasing, reasoning"
_IMAGE_KEYWORDS = "size, views"


class RouteSet:
    """The routes of one set and how they are asked, shown and judged.

    ``look``, ``language`` and ``routes`` (a name of :data:`~sftrl_fast.tasks.navigation.sets.SETS`) come with the
    environment's id. The user's own keywords: ``verify_iter``, tries at each point, at least 1; ``rewards``,
    ``"exact"`` or ``"reference"``; ``headings``, ``"wrapped"`` or ``"reference"``, which does not wrap the change
    of heading; ``data``, a folder of route files in place of the made-up cities; ``phrasing``, a name of
    :data:`~sftrl_fast.tasks.phrasing.PHRASINGS`; ``reasoning``, whether an answer gives its reasons. With pictures
    also ``size``, an even number of pixels, and ``views``, ``"exact"`` or ``"reference"``, which looks in the published
    code's directions. Anything else raises :class:`~sftrl_fast.core.UserError`.
    """

    size = 448
    views = "exact"

    def __init__(
        self,
        *,
        look: str = "text",
        language: str = "absolute",
        routes: str = "train",
        verify_iter: int = 2,
        rewards: str = "exact",
        headings: str = "wrapped",
        data: str = "",
        phrasing: str = "plain",
        reasoning: bool = False,
        **unknown: object,
    ) -> None:
        check_choice("look", look, LOOKS)
        for key, value in unknown.items():
            if look == "image" and key in ("size", "views"):
                setattr(self, key, value)
                continue
            known = f"{_KEYWORDS}, {_IMAGE_KEYWORDS}" if look == "image" else _KEYWORDS
            raise UserError(f"{key}={value!r} is no keyword of this task; it takes {known}")
        check_choice("language", language, tuple(LANGUAGES))
        check_choice("routes", routes, SETS)
        check_choice("rewards", rewards, REWARDS)
        check_choice("headings", headings, HEADINGS)
        check_choice("phrasing", phrasing, PHRASINGS)
        check_choice("reasoning", reasoning, (True, False))
        check_choice("views", self.views, VIEWS)
        if type(self.size) is not int or self.size % 2 or not SIZES[0] <= self.size <= SIZES[1]:
            raise UserError(f"size={self.size!r} must be an even number of pixels, {SIZES[0]} to {SIZES[1]}")
        check_at_least_one("verify_iter", verify_iter)
        if not isinstance(data, str):
            raise UserError(f"data={data!r} must be a folder's name, or empty for the made-up cities")
        self.look, self.language, self.rewards, self.data = look, LANGUAGES[language], rewards, data
        self.verify_iter, self.wrap = int(verify_iter), headings == "wrapped"
        self.phrasing, self.reasoning = phrasing, reasoning
        self.routes: tuple[Route, ...] = load_routes(routes, data)
        self.num_items = len(self.routes)
        self.rail = lru_cache(maxsize=None)(self._rail)

    def _rail(self, index: int) -> Rail:
        return build_rail(self.routes[index], self.language.name, wrap=self.wrap)

    def strata(self) -> np.ndarray:
        """The city of each item and, in quarters of the range, the length of its rail, int64 ``[num_items]``."""
        cities = np.unique([route.city for route in self.routes], return_inverse=True)[1].reshape(-1)
        lengths = np.array([len(route.spots) for route in self.routes])
        return cities * 4 + 4 * (lengths - lengths.min()) // (np.ptp(lengths) + 1)

    def questions(self) -> np.ndarray:
        """A number for each way through a city, int64 ``[num_items]``: routes over the same key points ask the same."""
        ways: dict[tuple[object, ...], int] = {}
        return np.array(
            [ways.setdefault(tuple(s.at for s in route.spots if s.key), len(ways)) for route in self.routes]
        )

    def demonstration(self, index: int, draw: int = 0) -> tuple[str, ...]:  # noqa: ARG002  (there is only one)
        """The right answers to item ``index``, one a point."""
        item = int(checked_indices("index", index, (), self.num_items))
        return demonstrate(self.rail(item), reasoning=self.reasoning)

    def observation(self, index: int, walk: Walk, text: str) -> Observation:
        """What the model is shown: ``text``, and with pictures the views where the walk along item ``index`` stands."""
        if self.look == "text":
            return text
        return {"text": text, "image": self.picture(index, walk.step.spot).copy()}

    def picture(self, index: int, spot: Spot) -> Pixels:
        """The four views of a spot of item ``index``, uint8 ``[size, size, 3]``, read-only."""
        if spot.pano:
            return photograph(self.data, spot, self.size, self.views)
        return street_view(spot, self.routes[index].city, self.size, self.views)

    def space(self) -> Space[Any]:
        """The space of one observation."""
        return observation_space(self.size if self.look == "image" else None)

    def walk(self, index: int) -> Walk:
        """A new walk along item ``index``."""
        return Walk(
            self.rail(index), self.language, self.look, self.rewards, self.verify_iter,
            wording(self.phrasing, prompt.WORDINGS, self.routes[index].city, self.routes[index].name),
            prompt.WORKED_OUTPUT if self.reasoning else prompt.OUTPUT,
        )  # fmt: skip


class NavigationEnv(RouteSet, gymnasium.Env[Observation, str]):
    """One route at a time. Keywords: :class:`RouteSet`.

    An observation is the newest user message, its text empty when the walk is over; an action is the model's answer
    at one point. The walk ends at the rail's end, terminated if every point was answered rightly, else truncated.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.observation_space = self.space()
        self.action_space = AnyText()
        self._index = 0
        self._walk: Walk | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin item ``options["index"]``, or one drawn by ``seed`` when no index is given.

        ``info`` holds ``index``, ``attempts_left`` (at this point) and the task's facts: ``route``, ``city``,
        ``point`` (from 0), ``points``, ``instruction`` (its number, from 1) and ``language``.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",))
        if "index" in chosen:
            self._index = int(checked_indices("options['index']", chosen["index"], (), self.num_items))
        else:
            self._index = int(self.np_random.integers(self.num_items))
        self._walk = self.walk(self._index)
        shown = self.observation(self._index, self._walk, self._walk.question())
        return shown, self._facts(self._walk)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judge the answer ``action`` at the point where the walk stands.

        ``info`` adds to that of :meth:`reset`: ``success``, the whole route without a failed point; ``right``, this
        answer; ``first_try``, whether it was the first at its point; ``outcome``
        (:class:`~sftrl_fast.tasks.navigation.verifier.Outcome`); and the verifier's ``message``.
        Raises ``gymnasium.error.ResetNeeded`` when no walk is under way.
        """
        if self._walk is None or self._walk.over:
            raise gymnasium.error.ResetNeeded("no walk is under way: call reset before step")
        if not isinstance(action, str):
            raise UserError(f"answer={action!r} must be a string")
        walk = self._walk
        text, reward = walk.answer(action)
        info = self._facts(walk) | {
            "success": walk.success,
            "right": walk.outcome is Outcome.RIGHT,
            "first_try": walk.first_try,
            "outcome": int(walk.outcome),
            "message": walk.message,
        }
        shown = self.observation(self._index, walk, text)
        return shown, reward, walk.success, walk.over and walk.failed, info

    def _facts(self, walk: Walk) -> dict[str, Any]:
        route = self.routes[self._index]
        return {
            "index": self._index,
            "attempts_left": walk.attempts_left,
            "route": route.name,
            "city": route.city,
            "point": walk.place,
            "points": len(route.spots),
            "instruction": walk.step.number,
            "language": self.language.name,
        }
