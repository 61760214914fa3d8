"""Files that cannot serve: each is named, told the way out, and left as it is."""

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Barrier, Timer

import pytest

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.stores.sqlite import SqliteStore

NOBODY = 65534


@contextmanager
def ordinary_user(folder: Path) -> Iterator[None]:
    """Root may write anything: be somebody else, who owns ``folder``."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an ordinary user can reach; pytest's own belong to root alone."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        Path(name).chmod(0o700)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def opened(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        SqliteStore(path, busy_timeout_s=0.1)
    message = str(caught.value)
    assert str(path) in message
    return message


@pytest.mark.parametrize("content", [b"hello", b"hello, world\n" * 500], ids=["short", "long"])
def test_a_file_that_is_no_database(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "is not an SQLite file, and was left as it is; name another" in opened(file)
    assert file.read_bytes() == content


def test_an_empty_file_becomes_a_store(file: Path) -> None:
    file.touch()
    with SqliteStore(file) as store:
        store.append([Event("1", "k")])


def test_another_programs_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE events (x)")
    before = file.read_bytes()
    assert "database of another program, and was left as it is" in opened(file)
    assert file.read_bytes() == before


def test_a_newer_schema(file: Path) -> None:
    SqliteStore(file).close()
    with closing(sqlite3.connect(file)) as newer:
        newer.execute("PRAGMA user_version = 7")
    assert "schema version 7, newer than the 3 that this Esper knows; upgrade" in opened(file)


def test_a_damaged_file(file: Path) -> None:
    with SqliteStore(file) as store:
        store.append([Event(str(i), "k", data={"text": "x" * 200}) for i in range(300)])
    content = bytearray(file.read_bytes())
    content[4096:-4096] = b"\xff" * (len(content) - 8192)
    file.write_bytes(content)
    with (
        pytest.raises(StoreError, match=re.escape(str(file)) + " is damaged.*left as it is.*recov"),
        SqliteStore(file) as store,
    ):
        list(store.read())
    assert file.read_bytes()[4096:-4096] == content[4096:-4096]


def test_one_damaged_byte_of_an_event_bars_no_other(file: Path) -> None:
    with SqliteStore(file) as store:
        for number in range(3):
            store.append([Event(f"id-{number}", "k", data={"text": f"here-{number}"})])
        store.save_snapshot("s", "snapshot-here")
    content = file.read_bytes()
    for place in (b"id-0", b"here-1", b"snapshot-here"):
        content = content.replace(place, b"\xe1" + place[1:])
    file.write_bytes(content)
    with SqliteStore(file) as store:
        assert [event.op_id for _, event in store.read()] == ["id-2"]
        assert "no text" in store.quarantined["1"]
        assert "can't decode byte 0xe1" in store.quarantined["2"]
        assert store.load_snapshot("s") is None
        store.append([Event("id-3", "k")])
        assert [event.op_id for _, event in store.read("2")] == ["id-2", "id-3"]


def test_a_damaged_index_is_found_and_the_file_not_compacted(file: Path) -> None:
    with SqliteStore(file) as store:
        store.append([Event(str(i), "k", f"scope-{i}") for i in range(300)])
        assert store.faults() == []
    with closing(sqlite3.connect(file)) as other:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'events_of_scope'"
        ((page,),) = other.execute(query)
        (size,) = other.execute("PRAGMA page_size").fetchone()
    content = bytearray(file.read_bytes())
    for index in range(300):  # of the index alone: the table's pages begin otherwise
        begin = (page - 1) * size
        found = content.find(f"scope-{index}".encode(), begin, begin + size)
        if found > 0:
            content[found : found + 5] = b"other"
    file.write_bytes(content)
    with SqliteStore(file) as store:
        assert any("missing from index events_of_scope" in line for line in store.faults())
        with pytest.raises(StoreError, match="is damaged, and was left as it is"):
            store.compact()
        assert len(list(store.read())) == 300


def test_locked_beyond_the_timeout(file: Path) -> None:
    with SqliteStore(file, busy_timeout_s=0.1) as store:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked = "stayed locked by another process for 0.1 s; end that process, or wait"
            with pytest.raises(StoreError, match=locked):
                store.append([Event("1", "k")])
            assert locked in opened(file)
            assert list(store.read()) == []  # readers need no lock
        store.append([Event("1", "k")])
        assert len(list(store.read())) == 1


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    assert "is a folder; name a file in it" in opened(tmp_path)


def test_a_file_in_the_folders_place(file: Path) -> None:
    file.write_text("a file")
    assert "its folder cannot be made" in opened(file / "history.db")


def test_a_read_only_file(open_folder: Path) -> None:
    file = open_folder / "history.db"
    with SqliteStore(file) as store:
        store.append([Event("1", "k")])
    file.chmod(0o444)
    with ordinary_user(open_folder):
        message = opened(file)
    assert "cannot be written: make the file and its folder writable, or copy" in message


@pytest.mark.parametrize("in_use", [False, True])
def test_a_read_only_archive_is_read(open_folder: Path, in_use: bool) -> None:
    source = open_folder / "source"
    source.mkdir()
    with SqliteStore(source / "history.db") as store:
        store.append([Event("1", "k")])
        archive = open_folder / "archive"
        if in_use:  # what was written last stands in the file beside it
            shutil.copytree(source, archive)
            (archive / "history.db-shm").unlink()
    if not in_use:
        shutil.copytree(source, archive)
    with ordinary_user(open_folder):
        archive.chmod(0o555)
        try:
            with SqliteStore(archive / "history.db", read_only=True) as store:
                assert [event.op_id for _, event in store.read()] == ["1"]
                with pytest.raises(StoreError):
                    store.append([Event("2", "k")])
        finally:
            archive.chmod(0o755)


def test_reading_makes_no_file(file: Path) -> None:
    with pytest.raises(StoreError, match="there is no file"):
        SqliteStore(file, read_only=True)
    assert not file.exists()


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder(open_folder: Path, exists: bool) -> None:
    file = open_folder / "history.db"
    if exists:
        SqliteStore(file).close()
    with ordinary_user(open_folder):
        open_folder.chmod(0o555)
        message = opened(file)
        assert "its folder" in message
        assert "writ" in message
        deeper = opened(open_folder / "deeper" / "history.db")
        assert "its folder cannot be made (Permission denied)" in deeper
        open_folder.chmod(0o000)
        assert "its folder cannot be made (Permission denied)" in opened(file)


def test_many_may_make_the_file_at_once(tmp_path: Path) -> None:
    together = Barrier(6)

    def open_and_append(path: Path, number: int) -> None:
        together.wait()
        with SqliteStore(path) as store:
            store.append([Event(str(number), "k")])

    with ThreadPoolExecutor(6) as pool:
        for attempt in range(15):
            path = tmp_path / f"{attempt}.db"
            for _ in pool.map(partial(open_and_append, path), range(6)):
                pass
            with SqliteStore(path) as store:
                assert len(list(store.read())) == 6


def test_a_new_file_that_another_process_holds_is_tried_again(file: Path) -> None:
    # SQLite's own timeout does not cover the switch to write-ahead mode beside a writer.
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "stayed locked by another process for 0.1 s" in opened(file)
        release = Timer(0.2, other.execute, ["COMMIT"])
        release.start()
        with SqliteStore(file) as store:
            store.append([Event("1", "k")])
        release.join()


def test_use_after_a_fork_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(StoreError, match="open it again in each process"):
            store.append([Event("1", "k")])
    store.append([Event("1", "k")])
    store.close()


def test_data_that_is_no_json_is_passed_over(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["{oops", "[1]", '{"reward": NaN}', '{"reward": 1e999}', "[" * 10_000]
    with SqliteStore(file) as store:
        for number, text in enumerate(texts):
            with closing(sqlite3.connect(file)) as other, other:
                other.execute(
                    "INSERT INTO events (op_id, kind, scope, run, data) VALUES (?, '', '', '', ?)",
                    (str(number), text),
                )
        store.append([Event("good", "k")])
        for _ in range(2):
            assert [event.op_id for _, event in store.read()] == ["good"]
        assert list(store.quarantined) == ["1", "2", "3", "4", "5"]
        assert "Infinity" not in store.quarantined["4"]
    assert "'{oops'" in caplog.text
    assert len(caplog.records) == 1


def test_filtered_reads_use_an_index_and_do_not_sort(file: Path) -> None:
    with SqliteStore(file):
        pass
    with closing(sqlite3.connect(file)) as other:
        for column in ("scope", "run"):
            plan = other.execute(
                f"EXPLAIN QUERY PLAN SELECT * FROM events WHERE position > 1 AND position <= 9 "
                f"AND {column} = 'x' ORDER BY position LIMIT 500"
            ).fetchall()
            text = " ".join(row[-1] for row in plan)
            assert f"USING INDEX events_of_{column}" in text
            assert "B-TREE" not in text


def test_a_file_of_the_first_schema_is_read_as_it_is_and_brought_up_to_date_by_an_append(
    file: Path,
) -> None:
    with closing(sqlite3.connect(file)) as old:
        old.executescript(
            """CREATE TABLE events (position INTEGER PRIMARY KEY, op_id TEXT NOT NULL UNIQUE,
                   kind TEXT NOT NULL, scope TEXT NOT NULL, run TEXT NOT NULL, data TEXT NOT NULL);
               INSERT INTO events VALUES (1, 'a', 'epoch', '', '', '{}');
               PRAGMA application_id = 0x45535052; PRAGMA user_version = 1;"""
        )
    with SqliteStore(file) as store, SqliteStore(file) as reader:
        assert [(event.op_id, event.schema) for _, event in reader.read()] == [("a", 0)]
        with closing(sqlite3.connect(file)) as old:
            assert old.execute("PRAGMA user_version").fetchone() == (1,)
        store.append([Event("b", "epoch")])
        for one in (store, reader):
            assert [(event.op_id, event.schema) for _, event in one.read()] == [("a", 0), ("b", 1)]
        reader.append([Event("c", "epoch")])
    SqliteStore(file).close()
