"""Backlog: events that wait for a store, the first in memory and the rest in a temporary file."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from tempfile import TemporaryFile
from typing import IO, final

from esper.contracts.events import LOST, Event, event_data, event_from

_IN_MEMORY = 2000


@final
class Backlog:
    """Queue of checked events within a limit; not safe to use from several threads.

    Args:
        limit_bytes: Largest size of the file, which has no name and ends with the process.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._head: deque[Event] = deque()
        self._file: IO[bytes] | None = None
        self._start = self._end = 0
        self._in_file = 0

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._head) + self._in_file

    def __iter__(self) -> Iterator[Event]:
        """All events in order, as they are now."""
        return chain(list(self._head), self._lines(self._start, self._in_file))

    def push(self, event: Event) -> bool:
        """Add an event at the end; false if there is no room for it."""
        if not self._in_file and len(self._head) < _IN_MEMORY:
            self._head.append(event)
            return True
        line = json.dumps(event_data(event)).encode() + b"\n"
        if self._end - self._start + len(line) > self._limit_bytes:
            return False
        try:
            if self._file is None:
                self._file = _nameless_file()
            self._file.seek(self._end)
            self._file.write(line)
            self._file.flush()
        except OSError:  # no room on the disk
            return False
        self._end += len(line)
        self._in_file += 1
        return True

    def first(self, count: int) -> list[Event]:
        """The first events, which stay."""
        more = min(count - len(self._head), self._in_file)
        if more > 0 and self._file is not None:
            self._head.extend(self._lines(self._start, more))
            self._start = self._file.tell()
            self._in_file -= more
            if not self._in_file:
                self._start = self._end = 0
                self._file.truncate(0)
        return list(islice(self._head, count))

    def replace(self, count: int, events: Sequence[Event]) -> None:
        """Put ``events`` in the place of the first ``count``, of which `first` gave each."""
        for _ in range(count):
            self._head.popleft()
        self._head.extendleft(reversed(events))

    def _lines(self, start: int, count: int) -> Iterator[Event]:
        if self._file is None or not count:
            return iter(())
        self._file.seek(start)
        lines = [self._file.readline() for _ in range(count)]
        return iter([event_from(json.loads(line)) for line in lines])


def _nameless_file() -> IO[bytes]:
    return TemporaryFile(prefix="esper-")


def bridged(before: Event, first: int, copies: Sequence[Event], why: str) -> list[Event]:
    """Events of a writer from number ``first`` up to, and without, an event.

    Args:
        before: The event that comes after them.
        first: Number of the first one.
        copies: Events that are still known, of this writer or others.
        why: Why the others are lost.

    Returns:
        Copies where there are some, and events that stand for what is lost elsewhere.
    """
    known = {e.number: e for e in copies if e.writer == before.writer and e.number >= first}
    found, number = list[Event](), first
    for at in [*sorted(n for n in known if n < before.number), before.number]:
        if at > number:
            found.append(lost(before, number, at - 1, why))
        if at < before.number:
            found.append(known[at])
        number = at + 1
    return found


def lost(like: Event, first: int, last: int, why: str) -> Event:
    """Event that stands for a writer's events from ``first`` to ``last``, which are lost."""
    data = {"first": first, "why": why}
    op_id = f"{like.writer}//lost/{first}-{last}"
    return Event(op_id, LOST, like.scope, like.run, data, writer=like.writer, number=last)
