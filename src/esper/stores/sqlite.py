"""SqliteStore: one file, shared by any number of processes of one machine."""

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import LOST, Event, again, joined
from esper.stores import leases
from esper.stores.base import MetricsStore, gaps
from esper.stores.payload import (
    checked,
    chosen,
    conflict,
    decode,
    encode,
    require_no_hole,
    same,
)
from esper.stores.quarantine import Quarantine
from esper.stores.sqlite_file import COLUMNS, DEFAULTS, SCHEMA_VERSION, SqliteFile

_PAGE = 500
_INSERT = (
    "INSERT INTO events (op_id, kind, scope, run, data, schema, writer, number) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (op_id) DO NOTHING"
)


@final
class SqliteStore(MetricsStore):
    """Embedded default: one table in one file, in write-ahead mode.

    Safe to use from several threads; each process opens its own. Every append is one transaction
    that takes the write lock first (``BEGIN IMMEDIATE``): writers queue instead of failing, and
    positions grow in the order of commits. An append that has returned survives the death of the
    process, not a loss of power (``synchronous=NORMAL``). Not for network file systems. A
    file of an older schema is brought up to date by the first append; reading leaves it as it is.

    Args:
        path: The file; it and its folder are made if missing, and nothing is ever overwritten.
        busy_timeout_s: Longest wait for another process's write, in seconds, >= 0.
        read_only: Only read a file that exists, which may stand where nothing can be written.

    Raises:
        StoreError: if the file is not ours, newer, damaged, locked or read-only.
    """

    def __init__(
        self, path: Path | str, *, busy_timeout_s: float = 30.0, read_only: bool = False
    ) -> None:
        self.path = Path(path).expanduser()
        self._quarantine = Quarantine(str(self.path))
        self._claims: dict[str, str] = {}
        self._file = SqliteFile(self.path, busy_timeout_s=busy_timeout_s, read_only=read_only)

    @classmethod
    @override
    def from_url(cls, url: str) -> Self:
        return cls(_path_in(url))

    @classmethod
    @override
    def reader(cls, url: str) -> Self:
        return cls(_path_in(url), read_only=True)

    @property
    @override
    def identity(self) -> str:
        return self._file.identity

    @property
    @override
    def quarantined(self) -> Mapping[str, str]:
        return self._quarantine

    @override
    def append(self, events: Sequence[Event]) -> None:
        new = checked(events)
        with self._file.writing() as connection:
            before = self._check_writers(connection, new)
            changes = connection.total_changes
            connection.executemany(_INSERT, map(_row, new))
            if connection.total_changes - changes < len(new):
                repeated = self._check_same(connection, new, before)
                connection.executemany(_INSERT, map(_row, repeated))

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
        start = self._position(after)
        tests: list[tuple[str, Sequence[str]]] = []
        if scope is not None:
            tests.append(("scope = ?", (scope,)))
        if run is not None:
            tests.append(("run = ?", (run,)))
        if wanted is not None:
            tests.append((f"kind IN ({','.join('?' * len(wanted))})", sorted(wanted)))
        values = [value for _, given in tests for value in given]
        with self._file.using() as connection:
            (end,) = connection.execute("SELECT ifnull(max(position), 0) FROM events").fetchone()
            added = COLUMNS[self._file.version(connection)]
        columns = [name if name in added else value for name, value in DEFAULTS.items()]
        query = (
            f"SELECT position, op_id, kind, scope, run, data, {', '.join(columns)} FROM events "
            "WHERE position > ? "
            f"AND position <= ? {''.join(f'AND {test} ' for test, _ in tests)}"
            f"ORDER BY position LIMIT {_PAGE}"
        )
        return self._pages(query, start, end, values)

    @override
    def end(self, scope: str) -> str:
        with self._file.using() as connection:
            (end,) = connection.execute("SELECT ifnull(max(position), 0) FROM events").fetchone()
        return str(end)

    @override
    def next_number(self, writer: str) -> int:
        with self._file.using() as connection:
            return self._next_number(connection, writer)

    @override
    def missing(self, writer: str, before: int) -> list[tuple[int, int]]:
        with self._file.using() as connection:
            if self._file.version(connection) < SCHEMA_VERSION:
                return gaps([], before)
            rows = connection.execute(
                "SELECT number, iif(kind = ?, json_extract(data, '$.first'), number) FROM events "
                "WHERE writer = ? AND number >= 0",
                (LOST, writer),
            ).fetchall()
        return gaps([(first, last) for last, first in rows], before)

    @override
    def claim(self, writer: str, holder: str, seconds: float) -> None:
        with self._file.writing() as connection:
            now = time.time()
            row = connection.execute(
                "SELECT holder, until FROM leases WHERE writer = ?", (writer,)
            ).fetchone()
            if row and row[0] != holder and row[1] > now and not leases.yields(row[0], holder):
                left = min(row[1] - now, seconds)  # more only if the clock was put back
                connection.execute(
                    "UPDATE leases SET until = ? WHERE writer = ?", (now + left, writer)
                )
                connection.execute("COMMIT")
                raise leases.taken(self.path, writer, row[0], left)
            connection.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (writer, holder, now + seconds)
            )
        self._claims[writer] = holder

    @override
    def release(self, writer: str) -> None:
        holder = self._claims.pop(writer, None)
        if holder is not None:
            with self._file.writing() as connection:
                connection.execute(
                    "DELETE FROM leases WHERE writer = ? AND holder = ?", (writer, holder)
                )

    @override
    def reserve(self, group: str, name: str, holder: str, seconds: float) -> bool:
        with self._file.writing() as connection:
            now, place = time.time(), _place(group, name)
            row = connection.execute(
                "SELECT holder, until FROM leases WHERE writer = ?", (place,)
            ).fetchone()
            if row and row[0] != holder and row[1] > now:
                return False
            connection.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (place, holder, now + seconds)
            )
        return True

    @override
    def reserved(self, group: str) -> Mapping[str, str]:
        first = _place(group, "")
        with self._file.using() as connection:
            if self._file.version(connection) < SCHEMA_VERSION:
                return {}
            rows = connection.execute(
                "SELECT writer, holder FROM leases WHERE writer >= ? AND writer < ? AND until > ?",
                (first, first[:-1] + "0", time.time()),  # "0" follows "/"
            ).fetchall()
        return {place[len(first) :]: holder for place, holder in rows}

    @override
    def load_snapshot(self, name: str) -> str | None:
        with self._file.using() as connection:
            if self._file.version(connection) < SCHEMA_VERSION:
                return None
            row = connection.execute(
                "SELECT text FROM texts WHERE name = ?", (f"snapshot/{name}",)
            ).fetchone()
        return row[0] if row and isinstance(row[0], str) else None  # damaged: none

    @override
    def save_snapshot(self, name: str, text: str) -> None:
        with self._file.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO texts VALUES (?, ?)", (f"snapshot/{name}", text)
            )

    @override
    def compact(self) -> None:
        self._file.compact()

    @override
    def faults(self) -> list[str]:
        return self._file.faults()

    @override
    def close(self) -> None:
        self._file.close()

    def _pages(
        self, query: str, start: int, end: int, values: Sequence[str]
    ) -> Iterator[tuple[str, Event]]:
        # Page by page: no transaction stays open while the reader works on an event.
        while True:
            rows = self._file.rows(query, (start, end, *values))
            for position, op_id, kind, scope, run, data, schema, writer, number in rows:
                names = (op_id, kind, scope, run, writer, number)
                event = self._quarantine.event(str(position), names, data, schema)
                if event is not None:
                    yield str(position), event
            if len(rows) < _PAGE:
                return
            start = rows[-1][0]

    def _check_writers(
        self, connection: sqlite3.Connection, events: Sequence[Event]
    ) -> dict[str, int]:
        """Next number of each writer, before these events."""
        following, before = dict[str, int](), dict[str, int]()
        for event in events:
            if event.number < 0:
                continue
            writer = event.writer
            if writer not in before:
                before[writer] = following[writer] = self._next_number(connection, writer)
                self._check_lease(connection, writer)
            following[writer] = require_no_hole(self.path, following[writer], event)
        return before

    def _check_lease(self, connection: sqlite3.Connection, writer: str) -> None:
        holder = self._claims.get(writer)
        if holder is not None:
            row = connection.execute(
                "SELECT holder FROM leases WHERE writer = ?", (writer,)
            ).fetchone()
            if row is not None and row[0] != holder:
                raise leases.lost(self.path, writer)

    def _next_number(self, connection: sqlite3.Connection, writer: str) -> int:
        if self._file.version(connection) < SCHEMA_VERSION:
            return 0
        row = connection.execute(
            "SELECT max(number) FROM events WHERE writer = ? AND number >= 0", (writer,)
        ).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def _check_same(
        self, connection: sqlite3.Connection, events: Sequence[Event], before: Mapping[str, int]
    ) -> list[Event]:
        """Events for new numbers whose event was stored before."""
        other, repeated = [], []
        for event in events:
            row = connection.execute(
                "SELECT kind, scope, run, data, writer, number FROM events WHERE op_id = ?",
                (event.op_id,),
            ).fetchone()
            try:
                kind, scope, run, text = row[:4]
                found = Event(event.op_id, kind, scope, run, decode(text))
            except StoreError:
                found = None
            if found is None or not same(found, event):
                other.append(event.op_id)
            if row[4:] != (event.writer, event.number) and event.number >= before.get(
                event.writer, 0
            ):
                repeated.append(again(event))
        if other:
            raise conflict(self.path, other)
        return repeated

    def _position(self, after: str) -> int:
        if not after:
            return 0
        if after.isdecimal() and after.isascii() and len(after) < 19:  # SQLite's 64 bits
            return int(after)
        raise StoreError(
            f"{after!r} is no position in store {self.path}; pass one that read() gave, or ''"
        )


def _row(event: Event) -> tuple[str | int, ...]:
    names = (event.op_id, event.kind, event.scope, event.run)
    return (*names, encode(event.data), event.schema, event.writer, event.number)


def _place(group: str, name: str) -> str:
    """Row of a reservation among the leases; no writer's name begins so."""
    return f"/{joined(group)}/{name}"


def _path_in(url: str) -> str:
    name = url.removeprefix("sqlite:///")
    if name == url or not name.strip("/"):
        rest = url.removeprefix("sqlite:").lstrip("/") or "history.db"
        raise ConfigError(
            f"store URL {url!r} is not complete; write 'sqlite:///{rest}' for a file in the "
            f"working directory, 'sqlite:////folder/{rest}' for an absolute path"
        )
    if name == ":memory:":
        raise ConfigError(f"store URL {url!r}: for a history in memory write 'memory:'")
    if "\0" in name:
        raise ConfigError(f"store URL {url!r} holds a null character; leave it out")
    return name
