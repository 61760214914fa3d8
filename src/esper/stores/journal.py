"""What running code writes through: a store may fail, the training goes on."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from threading import RLock
from types import TracebackType
from typing import Self, final

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.stores._base import MetricsStore
from esper.stores._payload import checked

logger = logging.getLogger(__name__)

_BATCH = 500
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 300.0
_PAUSE_PER_COST = 20  # a try that hangs for its timeout takes at most a twentieth of the time


@final
class Journal:
    """A store that never fails its writer.

    While the store fails, events wait here, in order and without a limit, and are delivered when
    it answers again; operation ids make the repetition safe. Between two tries passes a pause that
    doubles from 0.5 s to 300 s and is at least twenty times as long as the failed try took. One
    WARNING is logged when the store fails and one when everything is delivered.

    Safe to use from several threads, which wait for one another's writes.

    Args:
        store: Where the events go; closed by ``close``.
        clock: Seconds, growing; for tests.

    Attributes:
        store: The store itself.
        error: Why events wait; ``None`` when the store took everything.
    """

    def __init__(self, store: MetricsStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.error: StoreError | None = None
        self._clock = clock
        self._waiting: deque[Event] = deque()
        self._failures = 0
        self._next_try = 0.0
        self._closed = False
        self._lock = RLock()

    @property
    def waiting(self) -> int:
        """How many events the store has not taken yet; they are in this process's memory only."""
        return len(self._waiting)

    def undelivered(self) -> list[Event]:
        """The events that wait, for whoever can keep them safe meanwhile."""
        with self._lock:
            return list(self._waiting)

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
            if not events:
                return
            if self.error is None:
                self._append_or_keep(events)
                return
            self._waiting.extend(checked(events))
            if self._clock() >= self._next_try:
                self._deliver()

    def flush(self) -> None:
        """Try now to deliver what waits.

        Raises:
            StoreError: if the store still fails; the events keep waiting.
        """
        with self._lock:
            self._check_open()
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
        """Read the store, as ``MetricsStore.read`` does; what waits here is not in it yet."""
        return self.store.read(after, scope=scope, run=run, kinds=kinds)

    def close(self) -> None:
        """Deliver what can be delivered and close the store; again does nothing.

        Raises:
            StoreError: if events are lost; the message says how many and why.
        """
        with self._lock:
            if self._closed:
                return
            self._deliver()
            self._closed = True
            lost, error = self.waiting, self.error
            self._waiting.clear()
            self.store.close()
        if error is not None:
            raise StoreError(f"{lost} events were not stored and are lost: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append_or_keep(self, events: Sequence[Event]) -> None:
        started = self._clock()
        try:
            self.store.append(events)
        except StoreError as error:
            self._waiting.extend(checked(events))
            self._note_failure(error, started)

    def _deliver(self) -> None:
        started = self._clock()
        while self._waiting:
            batch = list(islice(self._waiting, _BATCH))
            try:
                self.store.append(batch)
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
