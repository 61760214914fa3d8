"""Which URL opens what, and what a wrong one is told."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import esper.registry
from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.registry import Registry
from esper.stores import MetricsStore, open_store
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore


def test_memory() -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    with pytest.raises(ConfigError, match="'memory:'"):
        open_store("memory:mine")


def test_relative_and_absolute_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with open_store("sqlite:///runs/h.db") as store:
        store.append([Event("1", "k")])
    with open_store(f"sqlite:///{tmp_path}/runs/h.db") as store:
        assert isinstance(store, SqliteStore)
        assert len(list(store.read())) == 1
    open_store("sqlite:///~/h.db").close()
    assert (tmp_path / "home" / "h.db").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is empty; write one of: memory:, sqlite:///"),
        ("history.db", "did you mean 'sqlite:///history.db'?"),
        ("/var/history.db", "did you mean 'sqlite:////var/history.db'?"),
        ("C:\\history.db", "is not a store URL"),
        ("sqlite:history.db", "write 'sqlite:///history.db'"),
        ("sqlite://history.db", "write 'sqlite:///history.db'"),
        ("sqlite://", "write 'sqlite:///history.db'"),
        ("sqlite:////", "is not complete"),
        ("sqlite:///:memory:", "write 'memory:'"),
        (
            "sqllite:///x.db",
            "unknown store 'sqllite'; known: memory, sqlite, redis, http, rediss, unix, https. ",
        ),
        ("sqllite:///x.db", "Did you mean 'sqlite'?"),
        ("postgres://u:secret@h/d", "unknown store 'postgres'"),
        ("localhost:6379", "unknown store 'localhost'"),
    ],
)
def test_a_wrong_url_is_told_how_to_write_it(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://:se/cret@host:1", "redis://:secret@host:x/0", "unix://:secret@/p?db=secret"]
)
def test_an_unreadable_redis_url_does_not_show_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read; write redis://") as caught:
        open_store(url)
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_another_package_adds_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*, group: str) -> list[EntryPoint]:
        assert group == "esper.stores"
        return [EntryPoint("mine", "esper.stores.memory:MemoryStore", group)]

    monkeypatch.setattr(esper.registry, "entry_points", found)
    stores: Registry[MetricsStore] = Registry("store", {}, group="esper.stores")
    monkeypatch.setattr("esper.stores.STORES", stores)
    with pytest.raises(ConfigError, match="a memory store has no name"):
        open_store("mine://x")


def test_another_package_s_class_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("nowhere:Mine", "esper.stores.memory:Mine"):
        point = EntryPoint("mine", place, "esper.stores")
        monkeypatch.setattr(esper.registry, "entry_points", lambda group, point=point: [point])
        stores: Registry[MetricsStore] = Registry("store", {}, group="esper.stores")
        with pytest.raises(ConfigError, match=f"store 'mine' of another package, {place}, cannot"):
            stores.load("mine")


def test_a_store_without_urls_says_so() -> None:
    class Plain(MetricsStore):
        pass

    with pytest.raises(ConfigError, match="Plain has no URL"):
        Plain.from_url("plain:")


BLOCKED = """
import sys
sys.modules["redis"] = None
from esper.stores import open_store
try:
    open_store("redis://localhost")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_missing_redis_package_names_the_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == (
        'ConfigError a Redis store needs redis-py: pip install "esper-morph[redis]"\n'
    )


HEAVY = """
import sys
from esper.stores import open_store
import esper.stores.redis, esper.stores.journal
open_store("sqlite:///" + sys.argv[1]).close()
print([name for name in ("torch", "numpy", "redis", "pydantic") if name in sys.modules])
"""


def test_stores_import_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAVY, str(tmp_path / "h.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.fixture
def nothing_listens() -> Iterator[str]:
    with socket.socket() as bound:  # bound, not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield f"redis://:secret@127.0.0.1:{bound.getsockname()[1]}/3"


def test_an_absent_server_is_named_without_the_password(nothing_listens: str) -> None:
    with pytest.raises(StoreError, match=r"store redis://127\.0\.0\.1:\d+/3 ") as caught:
        open_store(nothing_listens)
    assert "secret" not in str(caught.value)
