"""MemoryStore: a list of events, gone with the process."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import ClassVar, Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen, copied


@final
class MemoryStore(MetricsStore):
    """Store in memory; the reference for the laws. Safe to use from several threads.

    A position is the number of events up to and including it.
    """

    durable: ClassVar[bool] = False

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._seen: set[str] = set()
        self._lock = Lock()
        self._closed = False

    @classmethod
    @override
    def from_url(cls, url: str) -> Self:
        if url not in ("memory:", "memory://"):
            raise ConfigError(f"store URL {url!r}: a memory store has no name; write 'memory:'")
        return cls()

    @override
    def append(self, events: Sequence[Event]) -> None:
        new = checked(events)
        with self._lock:
            self._check_open()
            for event in new:
                if event.op_id not in self._seen:
                    self._seen.add(event.op_id)
                    self._events.append(event)

    @override
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        wanted = chosen(kinds)
        self._check_open()
        start = self._index(after)
        return (
            (
                str(position),
                replace(event, data=copied(event.data)),
            )
            for position, event in enumerate(self._events[start:], start + 1)
            if (scope is None or event.scope == scope)
            and (run is None or event.run == run)
            and (wanted is None or event.kind in wanted)
        )

    @override
    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._events = []
            self._seen = set()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this memory store is closed; open a new one")

    def _index(self, after: str) -> int:
        if not after:
            return 0
        if after.isdecimal() and after.isascii():
            return int(after)
        raise StoreError(
            f"{after!r} is no position in a memory store; pass one that read() gave, or ''"
        )
