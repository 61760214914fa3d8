"""MemoryStore: a list of events, gone with the process."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from threading import Lock
from typing import ClassVar, Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event, again
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen, conflict, copied, require_no_hole, same


@final
class MemoryStore(MetricsStore):
    """Store in memory; the reference for the laws. Safe to use from several threads.

    A position is the number of events up to and including it.
    """

    durable: ClassVar[bool] = False

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._seen: dict[str, Event] = {}
        self._next: dict[str, int] = {}
        self._reserved: dict[tuple[str, str], tuple[str, float]] = {}
        self._identity = token_hex(8)
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
            following = dict[str, int]()
            for event in new:
                if event.number >= 0:
                    known = following.get(event.writer, self._next.get(event.writer, 0))
                    following[event.writer] = require_no_hole("memory:", known, event)
            told = {event.op_id: event for event in reversed(new)}
            other = [
                event.op_id
                for event in new
                if not same(self._seen.get(event.op_id, told[event.op_id]), event)
            ]
            if other:
                raise conflict("memory:", other)
            for event in new:
                first = self._seen.setdefault(event.op_id, event)
                if first is event:
                    self._events.append(event)
                elif event.number >= self._next.get(event.writer, 0) and event != first:
                    self._events.append(again(event))
            self._next |= following

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

    @property
    @override
    def identity(self) -> str:
        return self._identity

    @override
    def end(self, scope: str) -> str:
        self._check_open()
        return str(len(self._events))

    @override
    def next_number(self, writer: str) -> int:
        self._check_open()
        return self._next.get(writer, 0)

    @override
    def reserve(self, group: str, name: str, holder: str, seconds: float) -> bool:
        with self._lock:
            self._check_open()
            now = time.monotonic()
            found, until = self._reserved.get((group, name), (holder, now))
            if found != holder and until > now:
                return False
            self._reserved[group, name] = holder, now + seconds
        return True

    @override
    def reserved(self, group: str) -> Mapping[str, str]:
        with self._lock:
            self._check_open()
            now, found = time.monotonic(), self._reserved.items()
            return {name: by for (of, name), (by, until) in found if of == group and until > now}

    @override
    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._events = []
            self._seen = {}

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this memory store is closed; open a new one")

    def _index(self, after: str) -> int:
        if not after:
            return 0
        if after.isdecimal() and after.isascii() and len(after) < 19:
            return int(after)
        raise StoreError(
            f"{after!r} is no position in a memory store; pass one that read() gave, or ''"
        )
