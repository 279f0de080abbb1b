"""Verdicts, solutions and hands: the checked Python face of the compiled code in ``csrc/points``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import combinations_with_replacement
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points.rules import FIRST_FACE, RANK_NAMES, RULES

HAND_SIZE = 4
REWARDS = ("exact", "reference")
MAX_NUMBER = 1_000_000
"""Largest target, and largest number that :func:`solve` takes."""

# numbers[rule, rank]; rank 0 is not used.
_NUMBERS = np.array([[0, *rule.numbers(range(1, 14))] for rule in RULES.values()], dtype=np.int64)
_RULE_CODES = {name: code for code, name in enumerate(RULES)}


class Outcome(IntEnum):
    """What was first found about a formula, in the order malformed, numbers, value.

    With ``rewards="reference"`` MALFORMED also stands for illegal characters, tokens out of order and what
    Python refuses to compile; an answer whose shown cards were misread is not looked at further and counts
    as WRONG_NUMBERS; and RIGHT is decided in floating point, so that a formula whose exact ``value`` is the
    target can be WRONG_VALUE.
    """

    RIGHT = 0
    WRONG_VALUE = 1
    UNDEFINED_VALUE = 2
    """Division by zero."""
    OVERFLOW = 3
    """A value beyond 64-bit fractions. No four cards reach it; it is kept apart for other numbers."""
    WRONG_NUMBERS = 4
    """A number that is not on the cards, used too often, or left out."""
    MALFORMED = 5


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the verifier said about ``n`` answers, one row each."""

    reward: NDArray[np.float32]
    """``[n]``."""
    outcome: NDArray[np.uint8]
    """``[n]``, codes of :class:`Outcome`."""
    cards_ok: NDArray[np.bool_]
    """``[n]``, whether the answer's ``cards`` are the true ones; only in the reward if they were shown."""
    value: NDArray[np.int64]
    """``[n, 2]``, the formula's exact value as numerator and positive denominator in lowest terms, even of
    wrong numbers; denominator 0 where there is none (malformed, undefined, overflow)."""
    _asked: tuple[
        tuple[str | bytes, ...], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], bool, bool
    ] = field(repr=False)

    def __len__(self) -> int:
        return len(self.reward)

    def messages(self) -> list[str]:
        """The verifier's sentence for each answer, made now: the next user turn after a wrong answer."""
        return _C.explain_points(*self._asked)


def verify(
    responses: Sequence[str | bytes],
    ranks: ArrayLike,
    *,
    rule: str | Sequence[str] = "face10",
    target: int | ArrayLike = 24,
    rewards: str = "exact",
    cards_shown: bool = False,
) -> Verdicts:
    """Judge ``n`` answers in one call, the GIL released. No text makes it raise.

    ``ranks`` ``[n, 4]`` are the true cards, 1..13. ``rule`` (a key of ``RULES``) and ``target``
    (0..1,000,000) are one value or one a row. ``bytes`` need not be valid UTF-8. With ``cards_shown`` the
    cards came as a picture and reading them is judged too.

    ``rewards="exact"`` (the appendix of arXiv 2501.17161): right +5; wrong, undefined or overflowing value
    -1; wrong numbers -2; malformed -3; cards misread -1.5 on top of any of these. It reads the last
    ``formula`` key, ignores what follows ``=``, and computes in fractions.

    ``rewards="reference"`` repeats the published code with its oddities: offences add up, values are compared
    in floating point, and an unclosed beginning of a solution earns +1. It exists to replicate that code.

    In both tables the -1 for a used-up budget is not a property of an answer: the environment adds it to the
    last turn.

    Raises ``UserError`` for arguments of a wrong shape, range or name.
    """
    texts = _checked_responses(responses)
    if rewards not in REWARDS:
        raise UserError(f"rewards={rewards!r} is unknown; choose one of {', '.join(REWARDS)}")
    n = len(texts)
    cards = _checked_ranks(ranks, n)
    numbers = _numbers_of(cards, rule)
    targets = _checked_targets(target, n)
    asked = (texts, cards, numbers, targets, rewards == "reference", bool(cards_shown))
    try:
        return Verdicts(*_C.verify_points(*asked), _asked=asked)
    except TypeError as error:  # the compiled code is the first to look at each response
        raise UserError(str(error)) from None


def solve(numbers: Sequence[int], target: int = 24) -> list[str]:
    """Every formula that uses each of 1 to 6 numbers (0..1,000,000) once and has the value ``target``.

    One formula stands for all that differ by commutativity and associativity alone: sums flattened to signed
    terms and products flattened to factors above and below the line are equal if they are equal as multisets,
    level by level. So ``a-(b-c)`` is ``a+c-b`` and ``a/(b/c)`` is ``a*c/b``, but ``(a-b)*(c-d)`` and
    ``(b-a)*(d-c)`` are two formulas, as are ``a*1`` and ``a/1``. Equal numbers are not told apart.

    Formulas have the fewest parentheses, are what :func:`verify` accepts, and come shortest first, equals in
    the order of their text, whatever the order of ``numbers``. Those with an intermediate value beyond 64-bit
    fractions are left out.

    >>> solve([8, 3, 8, 3])
    ['8/(3-8/3)']
    """
    try:
        checked = [index(number) for number in numbers]
    except TypeError:
        raise UserError(f"numbers={numbers!r} must be a sequence of integers") from None
    if not 1 <= len(checked) <= _C.MAX_NUMBERS:
        raise UserError(f"numbers={checked!r} has {len(checked)} entries; give 1 to {_C.MAX_NUMBERS}")
    for number in checked:
        _check_range("numbers", number)
    return _C.solve_points(checked, _checked_target(target))


def hands(
    rule: str = "face10", target: int = 24, *, solvable: bool | None = True, with_face: bool | None = None
) -> NDArray[np.int64]:
    """The rank multisets of four cards, ``[m, 4]``, each row and the rows in ascending order.

    ``solvable`` keeps the hands that reach ``target`` under ``rule`` (True), the others (False) or all
    (None); ``with_face`` those that hold a J, Q or K, those without, or all. Suits do not count: 1,820 rows
    in all.
    """
    ranks = np.array(list(combinations_with_replacement(range(1, len(RANK_NAMES) + 1), HAND_SIZE)), np.int64)
    numbers = _numbers_of(ranks, rule)
    keep = np.ones(len(ranks), bool)
    checked = _checked_target(target)
    if with_face is not None:
        keep &= (ranks >= FIRST_FACE).any(axis=1) == with_face
    if solvable is not None:
        keep[keep] = _C.solvable_points(numbers[keep], checked) == solvable
    return ranks[keep]


def _checked_responses(responses: Sequence[str | bytes]) -> tuple[str | bytes, ...]:
    if isinstance(responses, str | bytes):
        raise UserError(f"responses must be a sequence of str or bytes, not one {type(responses).__name__}")
    return tuple(responses)


def _checked_ranks(ranks: ArrayLike, n: int) -> NDArray[np.int64]:
    cards = np.asarray(ranks)
    if n == 0 and cards.size == 0:
        return np.empty((0, HAND_SIZE), np.int64)
    if cards.shape != (n, HAND_SIZE):
        raise UserError(
            f"ranks must have the shape ({n}, {HAND_SIZE}), one hand a response, not {cards.shape}"
        )
    if cards.dtype.kind not in "iu":
        raise UserError(f"ranks must be integers, not {cards.dtype}")
    if cards.min() < 1 or cards.max() > len(RANK_NAMES):
        raise UserError(f"ranks must be 1 (A) to 13 (K), not {cards.min()} to {cards.max()}")
    # A copy: the verdicts keep it for their messages.
    return np.array(cards, np.int64, order="C")


def _numbers_of(ranks: NDArray[np.int64], rule: str | Sequence[str]) -> NDArray[np.int64]:
    """What the cards count, ``[n, 4]``."""
    names = [rule] if isinstance(rule, str) else list(rule)
    for name in set(names):
        if name not in RULES:
            raise UserError(f"rule={name!r} is unknown; choose one of {', '.join(RULES)}")
    codes = np.array([_RULE_CODES[name] for name in names], np.int64)
    if isinstance(rule, str):
        return _NUMBERS[codes[0]][ranks]
    if len(codes) != len(ranks):
        raise UserError(
            f"rule has {len(codes)} entries for {len(ranks)} responses; give one, or one a response"
        )
    return _NUMBERS[codes[:, None], ranks]


def _checked_target(target: int) -> int:
    try:
        checked = index(target)
    except TypeError:
        raise UserError(f"target={target!r} must be an integer") from None
    _check_range("target", checked)
    return checked


def _checked_targets(target: int | ArrayLike, n: int) -> NDArray[np.int64]:
    targets = np.asarray(target)
    if targets.dtype.kind not in "iu" and targets.size:
        raise UserError(f"target={target!r} must be an integer, or one a response")
    if targets.ndim and targets.shape != (n,):
        raise UserError(f"target has the shape {targets.shape}; give one, or one for each of {n} responses")
    if targets.size:
        _check_range("target", int(targets.min()))
        _check_range("target", int(targets.max()))
    return np.array(np.broadcast_to(targets, (n,)), np.int64)


def _check_range(name: str, value: int) -> None:
    if not 0 <= value <= MAX_NUMBER:
        raise UserError(f"{name}={value} is out of range; give 0 to {MAX_NUMBER}")
