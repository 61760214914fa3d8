"""Journal: writes behind a store, so that a slow, failing or forgetful one stops no training."""

import atexit
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from threading import Condition, Lock
from typing import Self, final
from weakref import WeakValueDictionary

from esper.contracts.errors import ConfigError, EsperError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.behind.backlog import lost
from esper.stores.behind.breaker import Patience
from esper.stores.behind.delivery import Delivery, Pairs, Question
from esper.stores.behind.ticker import Ticker
from esper.stores.payload import checked

logger = logging.getLogger(__name__)

_MOST_QUEUED = 10_000


@final
class Journal:
    """Writes in batches and in the background; `append` never fails because of the store.

    A thread of the journal alone talks to a durable store. Who appends an outcome or asks for what
    others wrote waits for it, but not long, and not at all while the store fails or is late. What
    waits stays in order, a little in memory and the rest in a temporary file; beyond its size
    events are lost, which is told and noted in the log. Between two tries of a failing store there
    is a pause, from 0.5 s to 30 s. One WARNING is logged when it fails, one when all is delivered.

    If the store has lost events, those of the last 1,000 that went through here are told again,
    and the others noted in the log as lost. Safe to use from several threads.

    Args:
        store: Where the events go; closed by ``close``.
        clock: Monotonic seconds, for tests.
        backlog_bytes: Largest size of what waits.
        patience_s: Longest wait of a caller for a durable store.

    Attributes:
        store: The store itself.
    """

    def __init__(
        self,
        store: MetricsStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        backlog_bytes: int = 64 << 20,
        patience_s: float = 0.08,
    ) -> None:
        self.store = store
        self._direct = not store.durable
        self._made_of = (clock, backlog_bytes)
        self._patience = Patience(patience_s)
        self._queue: deque[Event | Callable[[], Event]] = deque()
        self._closed = False
        self._begin()
        _ALL[id(self)] = self

    def _begin(self) -> None:
        self._delivery = Delivery(self.store, *self._made_of)
        self._late = False
        self._question: Question | None = None
        self._collecting = Lock()
        self._settled = Condition(Lock())
        self._ticker = Ticker(self)

    @property
    def error(self) -> StoreError | None:
        """Why events wait; ``None`` when the store took everything."""
        return self._delivery.breaker.error

    @property
    def waiting(self) -> int:
        """Number of events that are not stored yet."""
        return len(self._delivery) + len(self._queue)

    def undelivered(self) -> list[Event]:
        """Events that wait, so that a checkpoint can keep them."""
        self._collect()
        return self._delivery.waiting()

    def recent(self) -> list[Event]:
        """The latest events that were stored through this journal; a store may lose its end."""
        return self._delivery.recent()

    def later(self, event: Event | Callable[[], Event]) -> None:
        """Write ``event`` with the next that is written, or after `soon` or `catch_up`.

        Args:
            event: Event, or a function that makes it, called once in the thread that writes; it
                must not depend on anything that changes until then.
        """
        self._queue.append(event)
        _BUSY.add(self)
        if len(self._queue) > _MOST_QUEUED:
            self._collect_alone()

    def soon(self) -> None:
        """Write the events of `later` within about 50 ms.

        Raises:
            StoreError: if this journal was closed.
        """
        if self._closed:
            self._check_open()
        if not self._ticker.runs():
            self.turn()

    def catch_up(self) -> None:
        """Write the events of `later` now; wait for it, but not long.

        Raises:
            ConfigError: if an event is not plain JSON; all others are written.
            StoreError: if this journal was closed.
        """
        if self._closed and self._queue:
            self._check_open()
        try:
            self._collect()
        finally:  # a fault in one event does not hold up the others
            if len(self._delivery):
                self._write()

    def append(self, event: Event) -> None:
        """Write one event; as `append_all`."""
        self.append_all((event,))

    def append_all(self, events: Sequence[Event]) -> None:
        """Write events in order, now or as soon as the store answers again.

        Raises:
            ConfigError: if one is not plain JSON; none is written then.
            StoreError: if this journal was closed; never because the store fails.
        """
        self._check_open()
        try:
            new = checked(events)
        except ConfigError:
            self.catch_up()
            raise
        for event in new:
            self.later(event)
        self.catch_up()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Deliver the events that wait now, and not those that other threads add meanwhile.

        Raises:
            ConfigError: if an event is not plain JSON; all others are written.
            StoreError: if the store still fails, or takes longer; the events keep waiting.
        """
        self._check_open()
        try:
            self._collect()
        finally:
            settled = self._settle(timeout_s)
        if not settled and self.waiting:
            why = self._why(timeout_s)
            raise StoreError(f"{self.waiting} events are not stored yet: {why}") from self.error

    def close(self, timeout_s: float = 30.0) -> None:
        """Deliver the events that wait and close the store; again does nothing.

        Raises:
            ConfigError: if an event is not plain JSON.
            StoreError: if events are lost; the message says how many and why.
        """
        if self._closed:
            return
        try:
            self._collect()
        finally:
            self._settle(timeout_s)
            missing, error, why = (
                self.waiting + self._delivery.dropped,
                self.error,
                self._why(timeout_s),
            )
            self._closed = True
            self._ticker.hurry()
            self._delivery.end(close=True)
            self._delivery.clear()
            self._queue.clear()
            _BUSY.discard(self)
        if missing:
            raise StoreError(f"{missing} events were not stored and are lost: {why}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        """Read the store, as ``MetricsStore.read``; events that still wait are not in it.

        Takes as long as the store does; for use while a run goes on there is `fetch`.
        """
        for journal in _journals():  # events that other journals of this process hold for later
            if journal.store is self.store and not journal._closed:
                journal._collect_alone()
                if journal.error is None:
                    journal._settle(5.0)
        return self.store.read(after, scope=scope, run=run, kinds=kinds)

    def fetch(self, after: str, *, scope: str, kinds: Collection[str]) -> tuple[Pairs, str]:
        """Read what came behind a position; wait for it, but not long.

        Returns:
            Pairs of position and event, and the position to go on from.

        Raises:
            LossError: if the store has lost events: positions mean nothing any more.
            StoreError: if the store fails, is late, or this journal was closed.
        """
        self._check_open()
        question = self._question
        if question is None or (question.after, question.scope) != (after, scope):
            if not self._delivery.breaker.allows():
                raise StoreError(f"store {self._delivery.name} is not asked while it fails")
            question = self._question = Question(after, scope, frozenset(kinds))
        if self._direct or not self._ticker.runs():
            self.turn()
        elif not question.answered.is_set():
            self._ticker.hurry()
            started = time.monotonic()
            self._late = not question.answered.wait(0 if self._late else self._patience.left())
            self._patience.spend(time.monotonic() - started)
        if not question.answered.is_set():
            raise StoreError(f"store {self._delivery.name} has not answered yet")
        self._question = None
        if question.error is not None:
            raise question.error
        return question.found

    def claim(self, writer: str) -> None:
        """Take a writer's lease, and keep it until `close`.

        Raises:
            LeaseError: if another process that lives writes under this name.
            StoreError: if the store cannot be written.
        """
        self._delivery.claim(writer)
        if self._delivery.claims:
            self._ticker.runs()

    def turn(self) -> bool:
        """Do what is due; true if something is left. For the journal's thread."""
        if self._closed:
            return False
        self._collect_alone()
        if len(self._delivery):
            self._deliver()
        question = self._question
        if question is not None and not question.answered.is_set():
            self._delivery.answer(question)
        self._late = False
        self._delivery.renew()
        _BUSY.discard(self)
        if self.waiting:
            _BUSY.add(self)
        return bool(self.waiting)

    @property
    def stays(self) -> bool:
        """True if its thread has leases to renew."""
        return self._delivery.claims and not self._closed

    def _deliver(self) -> None:
        self._delivery.deliver()
        with self._settled:
            self._settled.notify_all()

    def _collect_alone(self) -> None:
        try:
            self._collect()
        except EsperError as error:  # no caller could catch it
            logger.error("an event could not be written: %s", error)  # noqa: TRY400 (expected)

    def _collect(self) -> None:
        """Move events from the queue to the backlog.

        Raises:
            ConfigError: if some are not plain JSON; a lost one stands in the place of each.
        """
        fault: ConfigError | None = None
        with self._collecting:
            while self._queue:
                event = self._queue.popleft()
                made = event if isinstance(event, Event) else event()
                try:
                    (found,) = checked((made,))
                except ConfigError as error:
                    fault = fault or error
                    if made.number < 0:
                        continue
                    found = lost(made, made.number, made.number, str(error))
                self._delivery.add(found)
        if fault is not None:
            raise fault

    def _write(self) -> None:
        if self._direct or not self._ticker.runs():
            self._deliver()
        elif self.error is None and not self._late:
            self._ticker.hurry()
            started = time.monotonic()
            with self._settled:
                self._late = not self._settled.wait_for(
                    lambda: not len(self._delivery) or self.error is not None,
                    self._patience.left(),
                )
            self._patience.spend(time.monotonic() - started)

    def _settle(self, timeout_s: float) -> bool:
        """Try until all that waits now is delivered, or the store fails again; true if it is."""
        emptied = self._delivery.emptied
        if not len(self._delivery):
            return True
        self._delivery.breaker.half_open()
        if self._direct or not self._ticker.runs():
            self._deliver()
            return self._delivery.emptied > emptied
        delivery, tries = self._delivery, self._delivery.tries
        self._ticker.hurry()
        with self._settled:
            self._settled.wait_for(
                lambda: delivery.emptied > emptied or (delivery.tries > tries and self.error),
                timeout_s,
            )
        return delivery.emptied > emptied

    def _why(self, timeout_s: float) -> str:
        if self.error is not None:
            return str(self.error)
        if not self.waiting:
            return "the backlog was full"
        return f"store {self._delivery.name} has not answered for {timeout_s:g} s"

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this journal is closed; open a new one over the store")

    def at_exit(self) -> None:
        """Deliver what waits, at the normal end of the interpreter."""
        if self._closed:
            return
        self._collect_alone()
        self._settle(5.0)
        if self.waiting:
            logger.error("%d events were not stored and are lost: %s", self.waiting, self.error)
        self._delivery.end(close=False)

    def after_fork(self) -> None:
        """Begin anew in a child: the parent writes what waited; its thread is not here."""
        self._queue.clear()
        self._begin()


_ALL: WeakValueDictionary[int, Journal] = WeakValueDictionary()
"""Journals of this process, for its normal end and for forks."""

_BUSY: set[Journal] = set()
"""Those that must not be forgotten, since something waits in them."""


def _journals() -> list[Journal]:
    return [journal for one in _ALL.valuerefs() if (journal := one()) is not None]


def _at_exit() -> None:
    for journal in _journals():
        journal.at_exit()


def _after_fork() -> None:
    _BUSY.clear()
    for journal in _journals():
        journal.after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
