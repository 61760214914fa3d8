"""SqliteStore: one file, shared by any number of processes of one machine."""

import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Self, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores.base import MetricsStore
from esper.stores.payload import checked, chosen, decode, encode

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x45535052  # "ESPR"; tells our files from other programs' databases
_PAGE = 500
_TABLES = (
    """CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        op_id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        scope TEXT NOT NULL,
        run TEXT NOT NULL,
        data TEXT NOT NULL,
        schema INTEGER NOT NULL DEFAULT 0)""",
    # Each index carries the position, so that a filtered read is in order without sorting.
    "CREATE INDEX events_of_scope ON events (scope)",
    "CREATE INDEX events_of_run ON events (run)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_FROM_VERSION_1 = "ALTER TABLE events ADD COLUMN schema INTEGER NOT NULL DEFAULT 0"
_INSERT = (
    "INSERT INTO events (op_id, kind, scope, run, data, schema) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (op_id) DO NOTHING"
)
_WAYS_OUT = {
    "SQLITE_BUSY": "stayed locked by another process for {timeout:g} s; end that process, or wait",
    "SQLITE_READONLY": "cannot be written: make the file and its folder writable, or copy the "
    "file to a place that is",
    "SQLITE_NOTADB": "is not an SQLite file, and was left as it is; name another file",
    "SQLITE_CORRUPT": "is damaged, and was left as it is; try: sqlite3 FILE .recover",
    "SQLITE_CANTOPEN": "cannot be opened: check that its folder exists and may be written",
    "SQLITE_FULL": "cannot grow: the disk is full; free some space",
    "SQLITE_IOERR": "cannot be read or written by the operating system; check the disk",
}


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

    Raises:
        StoreError: if the file is not ours, newer, damaged, locked or read-only.
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 30.0) -> None:
        self.path = Path(path).expanduser()
        self._timeout_s = busy_timeout_s
        self._lock = Lock()
        self._old = False
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._connection = self._open()

    @classmethod
    @override
    def from_url(cls, url: str) -> Self:
        name = url.removeprefix("sqlite:///")
        if name == url or not name.strip("/"):
            rest = url.removeprefix("sqlite:").lstrip("/") or "history.db"
            raise ConfigError(
                f"store URL {url!r} is not complete; write 'sqlite:///{rest}' for a file in the "
                f"working directory, 'sqlite:////folder/{rest}' for an absolute path"
            )
        if name == ":memory:":
            raise ConfigError(f"store URL {url!r}: for a history in memory write 'memory:'")
        return cls(name)

    @override
    def append(self, events: Sequence[Event]) -> None:
        rows = [
            (event.op_id, event.kind, event.scope, event.run, encode(event.data), event.schema)
            for event in checked(events)
        ]
        with self._using() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                if self._is_old(connection):
                    connection.execute(_FROM_VERSION_1)
                    connection.execute(_TABLES[-1])
                connection.executemany(_INSERT, rows)
                connection.execute("COMMIT")
            finally:
                _roll_back(connection)

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
        with self._using() as connection:
            (end,) = connection.execute("SELECT ifnull(max(position), 0) FROM events").fetchone()
            schema = "0" if self._is_old(connection) else "schema"
        query = (
            f"SELECT position, op_id, kind, scope, run, data, {schema} FROM events "
            "WHERE position > ? "
            f"AND position <= ? {''.join(f'AND {test} ' for test, _ in tests)}"
            f"ORDER BY position LIMIT {_PAGE}"
        )
        return self._pages(query, start, end, values)

    @override
    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._process == os.getpid():
                connection.close()

    def _pages(
        self, query: str, start: int, end: int, values: Sequence[str]
    ) -> Iterator[tuple[str, Event]]:
        # Page by page: no transaction stays open while the reader works on an event.
        while True:
            with self._using() as connection:
                rows = connection.execute(query, (start, end, *values)).fetchall()
            for position, op_id, kind, scope, run, data, schema in rows:
                yield str(position), Event(op_id, kind, scope, run, decode(data), schema)
            if len(rows) < _PAGE:
                return
            start = rows[-1][0]

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise StoreError(f"store {self.path} is closed; open it again")
            if self._process != os.getpid():
                raise StoreError(
                    f"store {self.path} was opened in process {self._process} and used in its fork "
                    f"{os.getpid()}; open it again in each process"
                )
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise self._explained(error) from error

    def _open(self) -> sqlite3.Connection:
        self._make_folder()
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=self._timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # The busy timeout does not cover the switch to write-ahead mode, which fails at once when
        # two processes make the file together: hence the loop.
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._check_before_touching(connection)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                self._make_tables(connection)
            except sqlite3.OperationalError as error:
                if not _named(error).startswith("SQLITE_BUSY") or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            version = self._check_owner(connection)
            self._old = version == 1
            if version == 0:
                for statement in _TABLES:
                    connection.execute(statement)
                connection.execute("COMMIT")
            else:
                # A write that is rolled back: a read-only file shows now, not in mid-run.
                connection.execute(_TABLES[-1])
        finally:
            _roll_back(connection)

    def _is_old(self, connection: sqlite3.Connection) -> bool:
        # Another process may have brought the file up to date meanwhile.
        self._old = self._old and self._check_owner(connection) == 1
        return self._old

    def _check_before_touching(self, connection: sqlite3.Connection) -> None:
        try:
            # One snapshot: another process may be making the tables between two statements.
            connection.execute("BEGIN")
            self._check_owner(connection)
        finally:
            _roll_back(connection)

    def _check_owner(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != _APPLICATION_ID and (owner or version or tables):
            raise StoreError(
                f"store {self.path} is the SQLite database of another program, and was left as it "
                "is; name another file"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self.path} has schema version {version}, newer than the {SCHEMA_VERSION} "
                "that this Esper knows; upgrade with: pip install -U esper-morph"
            )
        return int(version)

    def _make_folder(self) -> None:
        try:
            is_folder = self.path.is_dir()
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"store {self.path}: its folder cannot be made ({error.strerror}); make it, or "
                "name a place that can be written"
            ) from error
        if is_folder:
            raise StoreError(f"store {self.path} is a folder; name a file in it: {self.path}/x.db")

    def _position(self, after: str) -> int:
        if not after:
            return 0
        if after.isdecimal() and after.isascii() and len(after) < 19:  # SQLite's 64 bits
            return int(after)
        raise StoreError(
            f"{after!r} is no position in store {self.path}; pass one that read() gave, or ''"
        )

    def _explained(self, error: sqlite3.Error) -> StoreError:
        name = _named(error)
        for prefix, way_out in _WAYS_OUT.items():
            if name.startswith(prefix):
                text = way_out.format(timeout=self._timeout_s)
                return StoreError(f"store {self.path} {text} ({error})")
        return StoreError(f"store {self.path}: SQLite says {name or type(error).__name__}: {error}")


def _named(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


def _roll_back(connection: sqlite3.Connection) -> None:
    # After COMMIT nothing is open; after an error, or Ctrl-C, the half-done batch must go.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
