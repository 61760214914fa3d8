"""Delivery: what a journal's thread does with a store: write, repair, read, keep leases."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event as Signal
from threading import Lock, RLock
from typing import final
from weakref import WeakValueDictionary

from esper.contracts.errors import (
    ConflictError,
    EsperError,
    HoleError,
    LeaseError,
    LossError,
    StoreError,
)
from esper.contracts.events import LOST, Event, again, first_number
from esper.stores import leases
from esper.stores.base import MetricsStore
from esper.stores.behind.backlog import Backlog, bridged, lost
from esper.stores.behind.breaker import Breaker

logger = logging.getLogger(__name__)

_BATCH = 500
_RECENT = 1000
_MOST_REPAIRS = 8
_NO_ROOM = "there was no room for them in the backlog"

Pairs = list[tuple[str, Event]]


@dataclass(slots=True)
class Question:
    """Question of a caller for events, and its answer.

    Attributes:
        after: Position to begin behind.
        scope: Scope of the events.
        kinds: Kinds of them.
        answered: Set when there is an answer.
        found: Pairs of position and event, and the position to go on from.
        error: Why there are none.
    """

    after: str
    scope: str
    kinds: frozenset[str]
    answered: Signal = field(default_factory=Signal)
    found: tuple[Pairs, str] = field(default_factory=lambda: ([], ""))
    error: StoreError | None = None


@final
class Delivery:
    """Events on their way to a store, behind a circuit breaker.

    `add`, `waiting` and `recent` never wait for the store; all else takes as long as it does.

    Args:
        store: Where they go.
        clock: Monotonic seconds.
        backlog_bytes: Largest size of what waits on the disk.

    Attributes:
        breaker: Says whether the store may be asked.
        tries: Batches that were tried.
        emptied: Times that nothing waited any more: what waited before is stored then.
        dropped: Events that found no room.
    """

    def __init__(self, store: MetricsStore, clock: Callable[[], float], backlog_bytes: int) -> None:
        self.breaker = Breaker(clock)
        self.tries = self.emptied = 0
        self.dropped = 0
        self.name = str(getattr(store, "address", getattr(store, "path", "in memory")))
        self._store = store
        self._backlog = Backlog(backlog_bytes)
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._unplaced: dict[str, tuple[Event, int, int]] = {}
        self._claims: dict[str, str] = {}
        self._renew_at = 0.0
        self._mutex = Lock()  # what waits; never held while the store is asked
        self._io = RLock()  # the store

    def __len__(self) -> int:
        return len(self._backlog)

    @property
    def claims(self) -> bool:
        """True if there are leases to renew."""
        return bool(self._claims)

    def waiting(self) -> list[Event]:
        """Events that are not stored yet."""
        with self._mutex:
            return list(self._backlog)

    def recent(self) -> list[Event]:
        """The latest events that were stored; a store may lose its end."""
        with self._mutex:
            return list(self._recent)

    def add(self, event: Event) -> None:
        """Take an event that is plain JSON."""
        with self._mutex:
            gap = self._unplaced.get(event.writer)
            if gap is not None and self._backlog.push(lost(*gap, _NO_ROOM)):
                gap = None
                del self._unplaced[event.writer]
            if gap is None and self._backlog.push(event):
                return
            if not self.dropped:
                logger.error("the backlog of store %s is full; events are lost now", self.name)
            self.dropped += 1
            if event.number >= 0:
                first = gap[1] if gap else event.number
                self._unplaced[event.writer] = (event, first, event.number)

    def clear(self) -> None:
        """Forget what waits."""
        with self._mutex:
            self._backlog = Backlog(0)

    def deliver(self) -> None:
        """Write what waits, until the store fails; nothing in the pause after a failure."""
        repairs = 0
        with self._io:
            while self.breaker.allows():
                with self._mutex:
                    batch = self._backlog.first(_BATCH)
                    self.emptied += not batch
                if not batch:
                    return
                try:
                    self._append(batch)
                except StoreError as error:
                    repairs += 1
                    if repairs > _MOST_REPAIRS or not self._repair(batch, error):
                        self._fail(error)
                else:
                    self._note_stored(batch)

    def answer(self, question: Question) -> None:
        """Read what a caller asked for."""
        try:
            if self.breaker.allows():
                with self._io:
                    question.found = self._read(question)
            else:
                question.error = self.breaker.error
        except LossError as error:
            logger.warning("%s", error)
            question.error = error
        except StoreError as error:
            question.error = error
            self._fail(error)
        question.answered.set()

    def claim(self, writer: str) -> None:
        """Take the lease of a writer, for `renew` to keep.

        Raises:
            LeaseError: if another process that lives has it.
            StoreError: if the store cannot be written.
        """
        if self._store.durable and writer not in self._claims:
            holder = leases.holder()
            with self._io:
                self._store.claim(writer, holder, leases.SECONDS)
            self._claims[writer] = holder
            _LATEST[self._store.identity, writer] = self
            self._renew_at = time.monotonic() + leases.SECONDS / 3

    def renew(self) -> None:
        """Renew leases, when a third of their time is over."""
        if not self._claims or time.monotonic() < self._renew_at or not self.breaker.allows():
            return
        self._renew_at = time.monotonic() + leases.SECONDS / 3
        try:
            with self._io:
                gone = self._taken_over()
                for writer, holder in list(self._claims.items()):
                    if writer not in gone:
                        self._store.claim(writer, holder, leases.SECONDS)
        except StoreError as error:
            logger.warning("a lease cannot be renewed: %s", error)

    def end(self, *, close: bool) -> None:
        """Give leases back and close the store, unless a thread hangs in it."""
        if not self._io.acquire(timeout=1.0):
            return
        try:
            for writer in self._claims:
                self._release(writer)
            if close:
                self._store.close()
        finally:
            self._io.release()

    def _append(self, events: Sequence[Event]) -> None:
        try:
            self._store.append(events)
        except EsperError:
            raise
        except Exception as error:  # of a store of another package
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def _note_stored(self, batch: Sequence[Event]) -> None:
        with self._mutex:
            self._backlog.replace(len(batch), ())
            self._recent.extend(batch)
            for writer in () if self._backlog else list(self._unplaced):
                self._backlog.push(lost(*self._unplaced.pop(writer), _NO_ROOM))
            everything = not self._backlog
        self.tries += 1
        if everything and self.breaker.close():
            logger.warning("the store answers again; everything that waited is stored")

    def _fail(self, error: StoreError) -> None:
        self.tries += 1
        if self.breaker.open(error):
            logger.warning("the store fails, the run goes on; events wait for it: %s", error)

    def _repair(self, batch: list[Event], error: StoreError) -> bool:
        """Change the first of the backlog so that the store can take it; false if it cannot."""
        if isinstance(error, ConflictError):
            changed = self._without_conflicts(batch, error)
        elif isinstance(error, HoleError):
            changed = self._without_hole(batch, error)
        elif isinstance(error, LossError):
            copies = self.recent()
            logger.warning("%s; the latest %d events are told again", error, len(copies))
            changed = [*copies, *batch]
        elif isinstance(error, LeaseError) and (gone := self._taken_over()):
            changed = [event for event in batch if event.writer not in gone]
            logger.warning(
                "%d events are not stored: another writer of this process goes on with %s",
                len(batch) - len(changed),
                ", ".join(map(repr, sorted(gone))),
            )
        else:
            return False
        with self._mutex:
            self._backlog.replace(len(batch), changed)
        return True

    def _taken_over(self) -> set[str]:
        """Writers that another delivery of this process has claimed since."""
        place = self._store.identity
        return {writer for writer in self._claims if _LATEST.get((place, writer)) is not self}

    def _without_conflicts(self, batch: Sequence[Event], error: ConflictError) -> list[Event]:
        changed, new = list[Event](), 0
        for event in batch:
            if event.op_id not in error.op_ids:
                changed.append(event)
            elif event.number >= self._store.next_number(event.writer):
                changed.append(again(event, told={"kind": event.kind, "data": dict(event.data)}))
                new += 1
            else:  # told before by the run that this one resumes
                new += event.number < 0
        level = logging.WARNING if new else logging.INFO
        logger.log(level, "%d events were told otherwise before: %s", len(error.op_ids), error)
        return changed

    def _without_hole(self, batch: Sequence[Event], error: HoleError) -> list[Event]:
        writer, following = error.writer, error.next_number
        at = next(
            i
            for i, event in enumerate(batch)
            if event.writer == writer and first_number(event) > following
        )
        fill = bridged(batch[at], following, self.recent(), "the store lost them")
        gone = sum(e.number - first_number(e) + 1 for e in fill if e.kind == LOST)
        told = sum(e.kind != LOST for e in fill)
        logger.warning("%s; %d are told again, %d are lost", error, told, gone)
        return [*batch[:at], *fill, *batch[at:]]

    def _read(self, question: Question) -> tuple[Pairs, str]:
        after, scope = question.after, question.scope
        end = self._store.end(scope)
        if end and _order(end) < _order(after):
            raise LossError(
                f"store {self.name} ends before what was read from it; its last events are lost"
            )
        pairs = list(self._store.read(after, scope=scope, kinds=question.kinds))
        last = pairs[-1][0] if pairs else after
        return pairs, max(last, end, key=_order)

    def _release(self, writer: str) -> None:
        try:
            self._store.release(writer)
        except StoreError:  # it ends by itself
            logger.info("the lease of %s was not given back", writer)


_LATEST: WeakValueDictionary[tuple[str, str], Delivery] = WeakValueDictionary()
"""Latest claimant of each writer in this process, by the store's identity and the writer."""


def _order(position: str) -> tuple[int, str]:
    return len(position), position
