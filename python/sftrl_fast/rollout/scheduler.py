"""Which requests run: admission by cache budget, shared prompts, kept sessions, eviction and resumption.

Every sequence is a prompt, which others with an equal one share, and tokens of its own behind it. That cut is a
function of the requests alone, never of what else runs or was evicted, so that neither changes a sum's order.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from sftrl_fast.core import UserError
from sftrl_fast.rollout.album import TOKEN, Picture, Tokens
from sftrl_fast.rollout.kv_cache import Int32Array, KVCache, pages_for
from sftrl_fast.rollout.request import EngineCounters, Request, SamplingParams
from sftrl_fast.rollout.tables import Draws, PrefixTable, RowTable


@dataclass(slots=True, eq=False)
class Prefix:
    """A prompt that one or more sequences begin with."""

    tokens: Tokens
    users: int = 0
    """Sequences under way, and sessions, that read its pages."""
    claims: int = 0
    """Sequences that wait and will."""
    row: int = 0
    """Of the :class:`PrefixTable`; 0 while its pages are not all written."""
    slot: int = -1
    """Of the :class:`RowTable` while it is being encoded."""
    waiters: list[Sequence] = field(default_factory=list)
    """Admitted sequences that begin when it is ready."""


@dataclass(slots=True, eq=False)
class Session:
    """What is kept of a dialogue between two requests."""

    prefix: Prefix
    own: Tokens
    """Tokens behind the prefix; ``pages`` holds their keys and values, or is None when they were evicted."""
    pages: Int32Array | None = None
    busy: bool = True
    idle_since: int = 0
    """The engine's step."""
    pictures: tuple[Picture, ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, waiting or under way."""

    ticket: int
    request: Request
    params: SamplingParams
    prefix: Prefix
    own: Tokens
    """The context's tokens behind the prefix."""
    session: Session | None
    keep: int
    """How many of ``own`` the session's pages hold, if they are still there."""
    pictures: tuple[Picture, ...] = ()
    """Those of the context, held."""
    slot: int = -1
    known: Tokens = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """``own`` and what was drawn before the last admission."""
    drawn: Draws = ()
    """Draws made before an eviction."""

    @property
    def mark(self) -> int:
        """The picture that what is drawn sees, as the last token of the context does."""
        return int((self.own if len(self.own) else self.prefix.tokens)[-1]) & ~TOKEN


EVICTED, CONTINUED, FRESH = range(3)
"""Whose turn it is first: those that were under way, then those that follow on a session's pages."""

PATIENCE = 16
"""Steps for which new requests leave an idle session its pages, while others run."""


class Scheduler:
    """Keeps cache, tables and queue; the engine runs the rows it names and tells it what became of them."""

    def __init__(self, cache: KVCache, max_sequences: int, counters: EngineCounters) -> None:
        self.cache, self.max_sequences, self.counters = cache, max_sequences, counters
        self.rows, self.prefixes = RowTable(min(max_sequences, 64) + 8), PrefixTable()
        self.owner: dict[int, Sequence | Prefix] = {}
        """By slot."""
        self.running: dict[int, Sequence] = {}
        """By ticket, the one admitted last at the end."""
        self.first_draws: list[int] = []
        """Slots whose context is their prefix, which is ready: they draw without encoding anything."""
        self.kinds: dict[tuple[float, int, float], int] = {}
        """Temperature, top_k and top_p of each ``kind`` of the rows."""
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._queued: dict[int, Sequence] = {}
        self._sessions: dict[Hashable, Session] = {}
        self._known: dict[bytes, Prefix] = {}
        self._unused: dict[Prefix, None] = {}
        """Prefixes with pages and no user, the one left last at the end."""
        self._idle: dict[Session, None] = {}
        """Sessions with pages and no request under way, likewise."""
        self._orders = count()

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.running or self._queued)

    def check_session(self, name: Hashable) -> None:
        """Raise :class:`UserError` if a session's last request has not ended."""
        session = self._sessions.get(name)
        if session is not None and session.busy:
            raise UserError(f"session {name!r} has a request under way; needed: one at a time")

    def add(
        self,
        ticket: int,
        request: Request,
        params: SamplingParams,
        context: Tokens,
        pictures: tuple[Picture, ...] = (),
    ) -> None:
        """Queue a request that fits the cache. ``context`` is the request's, as an array, marked with ``pictures``."""
        start, keep = len(context), 0
        session = None
        if request.session is not None:
            session = self._sessions.setdefault(
                request.session, Session(Prefix(context[:0]), context[:0], busy=False)
            )
            session.busy = True
            shared = len(session.prefix.tokens)
            if 0 < shared < len(context) and np.array_equal(context[:shared], session.prefix.tokens):
                start, keep = shared, _common(context[shared:-1], session.own)
            else:
                self._drop(session)
            if session in self._idle:
                self._idle[session] = self._idle.pop(session)
        prefix = self._prefix(context[:start])
        prefix.claims += 1
        sequence = Sequence(ticket, request, params, prefix, context[start:], session, keep, pictures)
        self._queue(CONTINUED if keep else FRESH, sequence)

    def admit(self) -> None:
        """Start waiting requests, as far as the cache and the number of sequences allow."""
        while self._waiting and len(self.running) < self.max_sequences:
            turn, _, sequence = self._waiting[0]
            if sequence.ticket not in self._queued:
                heapq.heappop(self._waiting)
            elif self._has_room(sequence, turn):
                heapq.heappop(self._waiting)
                del self._queued[sequence.ticket]
                self._start(sequence)
            else:
                return

    def make_room(self, pages: int) -> None:
        """Free pages, at the cost of idle sessions, then unused prompts, then the sequences admitted last."""
        while self.cache.free < pages:
            if not self._evict_idle(patience=0):
                self._evict(next(reversed(self.running.values())))

    def prefix_ready(self, slot: int) -> int:
        """The prompt in ``slot`` is encoded: let its sequences begin. Its row of the :class:`PrefixTable`."""
        prefix = self.owner.pop(slot)
        assert isinstance(prefix, Prefix)
        prefix.slot = -1
        prefix.row = self.prefixes.acquire(len(prefix.tokens), self.rows.release(slot))
        for sequence in prefix.waiters:
            self._begin(sequence)
        prefix.waiters.clear()
        return prefix.row

    def finish(self, slot: int) -> Sequence:
        """The sequence in ``slot`` has its answer; its session, if it is in one, keeps its pages."""
        sequence = self.owner[slot]
        assert isinstance(sequence, Sequence)
        answer = self.rows.draws(slot)[0][:-1].astype(np.int64) | sequence.mark
        pages = self._stop(sequence)
        session = sequence.session
        if session is None:
            self.cache.give(pages)
            self._leave(sequence.prefix)
            return sequence
        session.prefix, session.own = sequence.prefix, np.concatenate([sequence.own, answer])
        session.pages, session.busy, session.idle_since = pages, False, self.counters.steps
        session.pictures = sequence.pictures
        self._idle[session] = None
        return sequence

    def cancel(self, ticket: int) -> None:
        """Forget a request and what its session holds."""
        if sequence := self._queued.pop(ticket, None):
            sequence.prefix.claims -= 1
            self._settle(sequence.prefix)
        elif sequence := self.running.get(ticket):
            self.cache.give(self._stop(sequence))
            self._leave(sequence.prefix)
        if sequence is not None and sequence.session is not None:
            sequence.session.busy = False
            self.close(sequence.request.session)

    def close(self, name: Hashable) -> None:
        """Forget a session; a request of it that is under way ends without it."""
        session = self._sessions.pop(name, None)
        if session is None:
            return
        self._drop(session)
        for sequence in (*self.running.values(), *self._queued.values()) if session.busy else ():
            if sequence.session is session:
                sequence.session = None

    def restart(self) -> None:
        """Begin every request anew and forget all keys and values: they are of other weights."""
        for sequence in reversed(list(self.running.values())):
            self._evict(sequence)
        for sequence in self._queued.values():
            sequence.drawn = ()
        while self._evict_idle(patience=0):
            pass

    def _queue(self, turn: int, sequence: Sequence) -> None:
        self._queued[sequence.ticket] = sequence
        heapq.heappush(self._waiting, (turn, sequence.ticket, sequence))

    def _prefix(self, tokens: Tokens) -> Prefix:
        return self._known.setdefault(tokens.tobytes(), Prefix(tokens))

    def _has_room(self, sequence: Sequence, turn: int) -> bool:
        """Whether the sequence can start and those under way can still grow by a page; evicts what is idle."""
        spare = len(self.running) + 1 if self.running else 0
        patience = PATIENCE if turn == FRESH and self.running else 0
        while self.cache.free < self._pages_needed(sequence) + spare:
            if not self._evict_idle(patience):
                return False
        return True

    def _pages_needed(self, sequence: Sequence) -> int:
        prefix, session = sequence.prefix, sequence.session
        held = 0 if session is None or session.pages is None else len(session.pages)
        drawn = len(sequence.drawn[0]) if sequence.drawn else 0
        own = max(0, pages_for(len(sequence.own) + drawn + 1) - held)
        return own + (0 if prefix.row or prefix.slot >= 0 else pages_for(len(prefix.tokens)))

    def _start(self, sequence: Sequence) -> None:
        prefix, session = sequence.prefix, sequence.session
        prefix.claims -= 1
        prefix.users += 1
        self._unused.pop(prefix, None)
        order = next(self._orders)
        if prefix.row or prefix.slot >= 0:
            self.counters.cached_tokens += len(prefix.tokens)
        else:
            pages = self.cache.take(pages_for(len(prefix.tokens)))
            prefix.slot = self.rows.acquire(order, pages, cached=0, left=len(prefix.tokens))
            self.owner[prefix.slot] = prefix
        sequence.known = sequence.own
        if sequence.drawn:
            drawn = sequence.drawn[0].astype(np.int64) | sequence.mark
            sequence.known = np.concatenate([sequence.own, drawn])
        pages, cached = np.empty(0, dtype=np.int32), 0
        if session is not None and session.pages is not None:
            pages, cached = session.pages, sequence.keep
            self.cache.give(pages[pages_for(cached) :])
            pages = pages[: pages_for(cached)]
            session.pages = None
            del self._idle[session]
            self._leave(session.prefix)
            self.counters.cached_tokens += cached
        more = self.cache.take(pages_for(len(sequence.known)) - len(pages))
        slot = self.rows.acquire(order, np.concatenate([pages, more]), cached=cached, left=0)
        sequence.slot, self.owner[slot] = slot, sequence
        self.running[sequence.ticket] = sequence
        params = sequence.params
        kind = self.kinds.setdefault((params.temperature, params.top_k, params.top_p), len(self.kinds))
        watched = bool(params.stop_ids or params.stop_strings)
        key, limit = sequence.request.key, params.max_new_tokens
        self.rows.will_draw(slot, key, limit, kind, watched, sequence.mark)
        if sequence.drawn:
            self.rows.resume(slot, sequence.drawn)
        if prefix.row:
            self._begin(sequence)
        else:
            prefix.waiters.append(sequence)

    def _begin(self, sequence: Sequence) -> None:
        slot = sequence.slot
        self.rows.prefix[slot] = sequence.prefix.row
        self.rows.left[slot] = len(sequence.known) - self.rows.cached[slot]
        if not len(sequence.known):
            self.first_draws.append(slot)

    def _stop(self, sequence: Sequence) -> Int32Array:
        """Take a sequence off its slot; its pages."""
        slot, prefix = sequence.slot, sequence.prefix
        if sequence in prefix.waiters:
            prefix.waiters.remove(sequence)
        if slot in self.first_draws:
            self.first_draws.remove(slot)
        del self.running[sequence.ticket], self.owner[slot]
        sequence.slot = -1
        return self.rows.release(slot)

    def _evict(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it waits to go on where it was."""
        sequence.drawn = tuple(part.copy() for part in self.rows.draws(sequence.slot))
        sequence.keep = 0
        self.cache.give(self._stop(sequence))
        sequence.prefix.claims += 1
        self._leave(sequence.prefix)
        self._queue(EVICTED, sequence)
        self.counters.evictions += 1

    def _evict_idle(self, patience: int) -> bool:
        """Take the pages of one unused prompt or idle session; False if there is none."""
        if self._unused:
            self._free_prefix(next(iter(self._unused)))
            return True
        session = next(iter(self._idle), None)
        if session is None or self.counters.steps - session.idle_since < patience:
            return False
        self._drop(session)
        self.counters.evictions += 1
        return True

    def _drop(self, session: Session) -> None:
        """Take an idle session's pages, if it has any."""
        if session.pages is not None:
            self.cache.give(session.pages)
            session.pages = None
            del self._idle[session]
            self._leave(session.prefix)

    def _leave(self, prefix: Prefix) -> None:
        prefix.users -= 1
        self._settle(prefix)

    def _settle(self, prefix: Prefix) -> None:
        """After a user or a claim went: free what nobody reads or will."""
        if prefix.users:
            return
        if prefix.slot >= 0:
            del self.owner[prefix.slot]
            self.cache.give(self.rows.release(prefix.slot))
            prefix.slot = -1
        if prefix.claims:
            if prefix.row:
                self._unused[prefix] = None
            return
        if prefix.row:
            self._free_prefix(prefix)
        del self._known[prefix.tokens.tobytes()]

    def _free_prefix(self, prefix: Prefix) -> None:
        self._unused.pop(prefix, None)
        self.cache.give(self.prefixes.release(prefix.row))
        prefix.row = 0


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common beginning."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
