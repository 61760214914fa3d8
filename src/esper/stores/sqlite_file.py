"""SqliteFile: connection to one of our database files, checked, kept up to date and watched."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, final

from esper.contracts.errors import LossError, StoreError

SCHEMA_VERSION = 3
_APPLICATION_ID = 0x45535052  # "ESPR"; tells our files from other programs' databases
_ADDED = (  # since version 2
    """CREATE TABLE leases (
        writer TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE texts (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX events_of_writer ON events (writer, number) WHERE number >= 0",
    "INSERT INTO texts VALUES ('identity', lower(hex(randomblob(8))))",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_TABLES = (
    """CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        op_id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        scope TEXT NOT NULL,
        run TEXT NOT NULL,
        data TEXT NOT NULL,
        schema INTEGER NOT NULL DEFAULT 0,
        writer TEXT NOT NULL DEFAULT '',
        number INTEGER NOT NULL DEFAULT -1)""",
    # Each index carries the position, so that a filtered read is in order without sorting.
    "CREATE INDEX events_of_scope ON events (scope)",
    "CREATE INDEX events_of_run ON events (run)",
    *_ADDED,
)
COLUMNS = {0: (), 1: (), 2: ("schema",), 3: ("schema", "writer", "number")}
DEFAULTS = {"schema": "0", "writer": "''", "number": "-1"}
_MOST_FAULTS = 10
_FAILURES = (sqlite3.Error, UnicodeDecodeError)  # the latter where a message is no text, too
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
class SqliteFile:
    """Connection to a file of ours, shared by the threads of one process.

    Args:
        path: The file; made with its folder if missing, unless ``read_only``.
        busy_timeout_s: Longest wait for another process's write, in seconds, >= 0.
        read_only: Only read a file that exists, which may stand where nothing can be written.

    Raises:
        StoreError: if the file is not ours, newer, damaged, locked or read-only.

    Attributes:
        identity: Random name that the file got when it was made; empty in one of an old version.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float, read_only: bool) -> None:
        self.path = path
        self.identity = ""
        self._timeout_s = busy_timeout_s
        self._read_only = read_only
        self._lock = Lock()
        self._version = 0
        self._inode, self._size = -1, 0
        self._copy: TemporaryDirectory[str] | None = None
        self._process = os.getpid()
        self._closed = False
        self._connection: sqlite3.Connection | None = self._open()

    def close(self) -> None:
        """Close it; again does nothing."""
        with self._lock:
            connection, self._connection, self._closed = self._connection, None, True
            if connection is not None and self._process == os.getpid():
                connection.close()
            if self._copy is not None:
                self._copy.cleanup()

    def compact(self) -> None:
        """Give free pages, and the write-ahead log, back to the file system."""
        found = self.faults()
        if found:  # VACUUM would make it unreadable
            raise StoreError(
                f"store {self.path} {_WAYS_OUT['SQLITE_CORRUPT']} ({found[0]}); see: esper store "
                "check"
            )
        with self.using() as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._look()

    def faults(self) -> list[str]:
        """Faults that SQLite finds in the file, as a damaged index."""
        with self.using() as connection:
            found = connection.execute(f"PRAGMA integrity_check({_MOST_FAULTS})").fetchall()
        return [" ".join(str(line).split()) for (line,) in found if line != "ok"]

    def rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Rows of a query, all at once; a cell that is no text, as one damaged, is bytes.

        Raises:
            LossError, StoreError: as `using`.
        """
        with self.using() as connection:
            connection.text_factory = str  # SQLite's own decoding, which is faster
            try:
                return connection.execute(query, values).fetchall()
            except (sqlite3.OperationalError, UnicodeDecodeError):
                connection.text_factory = _text
                return connection.execute(query, values).fetchall()
            finally:
                connection.text_factory = _text

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """Connection, for this thread alone.

        Raises:
            LossError: if the file is not what it was.
            StoreError: if it is closed, or SQLite fails.
        """
        with self._lock:
            if self._closed:
                raise StoreError(f"store {self.path} is closed; open it again")
            if self._process != os.getpid():
                raise StoreError(
                    f"store {self.path} was opened in process {self._process} and used in its fork "
                    f"{os.getpid()}; open it again in each process"
                )
            try:
                yield self._same_connection()
            except _FAILURES as error:
                raise self._explained(error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which has the lock from the beginning; raises as `using`."""
        with self.using() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._bring_up_to_date(connection)
                yield connection
                connection.execute("COMMIT")
            finally:
                _roll_back(connection)

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        version = self.version(connection)
        if version == SCHEMA_VERSION:
            return
        for name, value in DEFAULTS.items():
            if name not in COLUMNS[version]:
                kind = "TEXT" if name == "writer" else "INTEGER"
                connection.execute(
                    f"ALTER TABLE events ADD COLUMN {name} {kind} NOT NULL DEFAULT {value}"
                )
        for statement in _ADDED:
            connection.execute(statement)
        self.identity = _identity(connection)

    def _same_connection(self) -> sqlite3.Connection:
        """Connection, unless the file was deleted, replaced or cut while it was open.

        Raises:
            LossError: if so; what is at the path now is open from then on.
        """
        try:
            found = None if self._copy is not None else self.path.stat()
        except OSError:
            found = None
        same = found is not None and found.st_ino == self._inode and found.st_size >= self._size
        if self._connection is not None and (same or self._copy is not None):
            return self._connection
        before, connection, self._connection = self.identity, self._connection, None
        if connection is None:  # it could not be opened again the last time
            self._connection = self._open()
        else:
            with suppress(sqlite3.Error):
                connection.close()
            self._connection = self._open()
            how = "cut" if self.identity == before and found is not None else "deleted or replaced"
            raise LossError(
                f"store {self.path}: the file was {how} while it was open; what is at its place "
                "now may lack what was written before"
            )
        return self._connection

    def _look(self) -> None:
        found = self.path.stat()
        self._inode, self._size = found.st_ino, found.st_size

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            return self._open_to_read()
        self._make_folder()
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=self._timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.text_factory = _text
            try:
                self._prepare(connection)
                self._look()
            except BaseException:
                connection.close()
                raise
        except _FAILURES as error:
            raise self._explained(error) from error
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        """Connection for reading; of a copy, where a reader cannot make SQLite's own files."""
        if not self.path.is_file():
            raise StoreError(f"there is no file {self.path}; give the store that the runs wrote to")
        try:
            return self._connected(f"{self.path.resolve().as_uri()}?mode=ro")
        except _FAILURES as error:
            if not _named(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise self._explained(error) from error
        try:
            self._copy = TemporaryDirectory(prefix="esper-")
            for beside in ("", "-wal"):
                part = self.path.with_name(self.path.name + beside)
                if part.exists():
                    shutil.copyfile(part, Path(self._copy.name, f"store{beside}"))
            return self._connected(Path(self._copy.name, "store").as_uri())
        except (*_FAILURES, OSError) as error:
            if isinstance(error, OSError):
                raise StoreError(f"store {self.path} cannot be read: {error.strerror}") from error
            raise self._explained(error) from error

    def _connected(self, address: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            address,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        connection.text_factory = _text
        try:
            connection.execute("PRAGMA query_only = ON")
            self._version = self._check_owner(connection)
            self.identity = _identity(connection) if self._version == SCHEMA_VERSION else ""
            self._look()
            if self._version == 0:  # nothing was written into it yet
                connection.close()
                connection = self._emptiness()
        except BaseException:
            connection.close()
            raise
        return connection

    def _emptiness(self) -> sqlite3.Connection:
        """A history without events, in memory."""
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        for statement in _TABLES:
            connection.execute(statement)
        self._version = SCHEMA_VERSION
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
            self._version = self._check_owner(connection)
            if self._version == 0:
                for statement in _TABLES:
                    connection.execute(statement)
                self.identity = _identity(connection)
                connection.execute("COMMIT")
            else:
                # A write that is rolled back: a read-only file shows now, not in mid-run.
                connection.execute(_TABLES[-1])
                if self._version == SCHEMA_VERSION:
                    self.identity = _identity(connection)
        finally:
            _roll_back(connection)

    def version(self, connection: sqlite3.Connection) -> int:
        """Schema version of the file."""
        # Another process may have brought the file up to date meanwhile.
        if self._version != SCHEMA_VERSION:
            self._version = self._check_owner(connection)
            if self._version == SCHEMA_VERSION:
                self.identity = _identity(connection)
        return self._version

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

    def _explained(self, error: Exception) -> StoreError:
        name, said = _named(error), " ".join(str(error).split())  # it may quote a whole statement
        for prefix, way_out in _WAYS_OUT.items():
            if name.startswith(prefix):
                text = way_out.format(timeout=self._timeout_s)
                return StoreError(f"store {self.path} {text} ({said})")
        return StoreError(f"store {self.path}: SQLite says {name or type(error).__name__}: {said}")


def _identity(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT text FROM texts WHERE name = 'identity'").fetchone()
    return "" if row is None else str(row[0])


def _text(value: bytes) -> str | bytes:
    """Text of a cell; bytes where it is none, so that a damaged entry bars no other."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _named(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "SQLITE_CORRUPT"
    return str(getattr(error, "sqlite_errorname", ""))


def _roll_back(connection: sqlite3.Connection) -> None:
    # After COMMIT nothing is open; after an error, or Ctrl-C, the half-done batch must go.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
