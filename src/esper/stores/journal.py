"""Journal: a write buffer before a store, so that a slow or failing one stops no training."""

import atexit
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from threading import Lock, RLock, Thread
from typing import Self, final
from weakref import WeakValueDictionary

from esper.contracts.errors import ConfigError, EsperError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.payload import checked

logger = logging.getLogger(__name__)

_BATCH = 500
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 300.0
_BEHIND_S = 0.05
_IDLE_ROUNDS = 100
_PAUSE_PER_COST = 20  # a try that hangs for its timeout takes at most a twentieth of the time


@final
class Journal:
    """Write buffer whose `append` never fails because of the store.

    While the store fails, events wait here, in order and without a limit, and are delivered when
    it answers again; operation ids make the repetition safe. The pause between two tries doubles
    from 0.5 s to 300 s and is at least twenty times as long as the failed try took. One WARNING is
    logged when the store fails and one when everything is delivered.

    Events given to `later` are written in their place before anything else is written or read
    here, at the latest 50 ms after `soon` by a background thread, and at the normal end of the
    interpreter (docs/decisions/0019: losses of a process that is killed).

    Safe to use from several threads, which wait for one another's writes.

    Args:
        store: Where the events go; closed by ``close``.
        clock: Monotonic seconds, for tests.

    Attributes:
        store: The store itself.
        error: Why events wait; ``None`` when the store took everything.
    """

    def __init__(self, store: MetricsStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.error: StoreError | None = None
        self._clock = clock
        self._later: deque[Event | Callable[[], Event]] = deque()
        self._ticking = False
        self._waiting: deque[Event] = deque()
        self._failures = 0
        self._next_try = 0.0
        self._closed = False
        self._lock = RLock()
        self._beginning = Lock()
        _ALL[id(self)] = self

    @property
    def waiting(self) -> int:
        """Number of events that are in this process's memory only."""
        return len(self._waiting) + len(self._later)

    def undelivered(self) -> list[Event]:
        """Events that wait, so that a checkpoint can keep them."""
        with self._lock:
            self._catch_up()
            return list(self._waiting)

    def later(self, event: Event | Callable[[], Event]) -> None:
        """Write ``event`` with the next that is written, or after `soon` or `catch_up`.

        Args:
            event: Event, or a function that makes it, called once in the thread that writes; it
                must not depend on anything that changes until then.
        """
        self._later.append(event)

    def soon(self) -> None:
        """Write the events of `later` within about 50 ms.

        Raises:
            StoreError: if this journal was closed.
        """
        if self._closed:
            self._check_open()
        if not self._ticking:
            self._begin_to_tick()

    def catch_up(self) -> None:
        """Write the events of `later` now.

        Raises:
            ConfigError: if an event is not plain JSON; all others are written.
            StoreError: if this journal was closed.
        """
        with self._lock:
            if self._later:
                self._check_open()
                self._catch_up()

    def append(self, event: Event) -> None:
        """Write one event, now or as soon as the store answers again.

        Raises:
            ConfigError: if the event is not plain JSON.
            StoreError: if this journal was closed; never because the store fails.
        """
        self.append_all((event,))

    def append_all(self, events: Sequence[Event]) -> None:
        """Write ``events`` in order, as ``append`` does; while the store works, all or none."""
        with self._lock:
            self._check_open()
            try:
                self._catch_up()
            finally:  # a fault in earlier events does not hold these up
                if events:
                    self._write(events)

    def flush(self) -> None:
        """Deliver the events that wait.

        Raises:
            StoreError: if the store still fails; the events keep waiting.
        """
        with self._lock:
            self._check_open()
            self._catch_up()
            self._deliver()
            if self.error is not None:
                raise StoreError(
                    f"{self.waiting} events are not stored yet: {self.error}"
                ) from self.error

    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        """Read the store, as ``MetricsStore.read``; events that wait are not in it yet."""
        for journal in _journals():  # events that other journals of this process hold for later
            if journal.store is self.store:
                journal._catch_up_alone()
        return self.store.read(after, scope=scope, run=run, kinds=kinds)

    def close(self) -> None:
        """Deliver the events that wait and close the store; again does nothing.

        Raises:
            StoreError: if events are lost; the message says how many and why.
        """
        with self._lock:
            if self._closed:
                return
            try:
                self._catch_up()
            finally:
                self._deliver()
                self._closed = True
                lost, error = self.waiting, self.error
                self._waiting.clear()
                self.store.close()
        if error is not None:
            raise StoreError(f"{lost} events were not stored and are lost: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin_to_tick(self) -> None:
        with self._beginning:  # so that there is one thread
            if self._ticking:
                return
            thread = Thread(target=self._tick, name="esper-journal", daemon=True)
            self._ticking = True
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._ticking = False
        if not self._ticking:
            self._catch_up_alone()

    def _tick(self) -> None:
        # Looking at an empty queue now and then costs less than waking a thread at each choice.
        idle = 0
        try:
            while idle < _IDLE_ROUNDS and not self._closed:
                time.sleep(_BEHIND_S)
                idle = 0 if self._later else idle + 1
                if self._later:
                    self._catch_up_alone()
        finally:
            self._ticking = False
        self._catch_up_alone()  # what came while this thread seemed to go on

    def _catch_up_alone(self) -> None:
        try:
            with self._lock:
                if not self._closed:
                    self._catch_up()
        except EsperError as error:  # no caller could catch it
            logger.error("an event could not be written: %s", error)  # noqa: TRY400 (expected)

    def _after_fork(self) -> None:
        # The parent writes what waited; its thread, and the holder of the lock, are not here.
        self._lock, self._beginning = RLock(), Lock()
        self._later.clear()
        self._ticking = False

    def _catch_up(self) -> None:
        later = self._later
        if not later:
            return
        events: list[Event] = []
        try:
            for _ in range(len(later)):
                event = later.popleft()
                events.append(event if isinstance(event, Event) else event())
        finally:  # one that cannot be made holds up no other
            self._write_each(events)

    def _write_each(self, events: Sequence[Event]) -> None:
        try:
            if events:
                self._write(events)
        except ConfigError:
            if len(events) == 1:
                raise
            self._write_one_by_one(events)

    def _write_one_by_one(self, events: Sequence[Event]) -> None:
        failed: ConfigError | None = None
        for event in events:
            try:
                self._write((event,))
            except ConfigError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _write(self, events: Sequence[Event]) -> None:
        if self.error is None:
            self._append_or_keep(events)
            return
        self._waiting.extend(checked(events))
        if self._clock() >= self._next_try:
            self._deliver()

    def _append_or_keep(self, events: Sequence[Event]) -> None:
        started = self._clock()
        try:
            self._append(events)
        except StoreError as error:
            self._waiting.extend(checked(events))
            self._note_failure(error, started)

    def _append(self, events: Sequence[Event]) -> None:
        try:
            self.store.append(events)
        except EsperError:
            raise
        except Exception as error:  # of a store of another package
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def _deliver(self) -> None:
        started = self._clock()
        while self._waiting:
            batch = list(islice(self._waiting, _BATCH))
            try:
                self._append(batch)
            except StoreError as error:
                self._note_failure(error, started)
                return
            for _ in batch:
                self._waiting.popleft()
        if self.error is not None:
            logger.warning("the store answers again; everything that waited is stored")
        self.error = None
        self._failures = 0

    def _note_failure(self, error: StoreError, started: float) -> None:
        if self.error is None:
            logger.warning(
                "the store fails, the run goes on; events wait in memory until it answers: %s",
                error,
            )
        self.error = error
        ended = self._clock()
        pause = max(
            _FIRST_PAUSE_S * 2 ** min(self._failures, 16), _PAUSE_PER_COST * (ended - started)
        )
        self._failures += 1
        self._next_try = ended + min(pause, _LONGEST_PAUSE_S)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this journal is closed; open a new one over the store")


_ALL: WeakValueDictionary[int, Journal] = WeakValueDictionary()
"""Journals of this process, for its normal end and for forks."""


def _journals() -> list[Journal]:
    # References at once, since another thread may make a journal meanwhile.
    return [journal for one in _ALL.valuerefs() if (journal := one()) is not None]


def _at_exit() -> None:
    for journal in _journals():
        journal._catch_up_alone()


def _after_fork() -> None:
    for journal in _journals():
        journal._after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
