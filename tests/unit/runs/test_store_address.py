"""Addresses of stores: shown without a password, the same from every folder, checked in time."""

from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.runs import store_address
from esper.stores import addresses
from esper.stores.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", ""),
        ("sqlite:////var/history.db", "sqlite:////var/history.db"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
    ],
)
def test_passwords_are_not_shown(url: str, expected: str) -> None:
    assert addresses.shown(url) == expected


def test_a_store_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_address.check_store("sqlite:///a/h.db", "digits") == f"sqlite:///{tmp_path}/a/h.db"
    assert store_address.check_store("", "digits") == ""
    assert store_address.absolute("redis://host/0") == "redis://host/0"
    with pytest.raises(ConfigError, match="not complete"):
        store_address.check_store("sqlite:///", "digits")


def test_a_store_damaged_inside_is_found_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with SqliteStore(path) as store:
        store.append([Event(str(i), "k", "digits", data={"text": "x" * 200}) for i in range(300)])
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        store_address.check_store(f"sqlite:///{path}", "digits")
