"""Event logs read back as facts."""

from pathlib import Path

import pytest

from esper.app import lookup
from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores.sqlite import SqliteStore


def event(kind: str, **data: object) -> Event:
    return Event(f"digits/run-7/{kind}", kind, "digits", "run-7", data)


EVENTS = [
    event("epoch", epoch=0, decision=None),
    event("decision", decision="digits/run-7/fc1/0", epoch=1),
    event("timing", decision="digits/run-7/fc1/0", latency_ms=0.5),
    event("epoch", epoch=1, decision="digits/run-7/fc1/0"),
    event("failure", decision="digits/run-7/fc1/0"),
]


def test_a_fact_has_an_epoch_and_neither_ids_nor_the_name_of_the_run() -> None:
    facts = lookup.log(EVENTS)
    assert [(fact["epoch"], fact["kind"]) for fact in facts] == [
        (0, "epoch"),
        (1, "decision"),
        (1, "epoch"),
        (2, "failure"),  # its epoch has not ended yet
    ]
    assert facts[1]["data"]["decision"] == "fc1/0"
    assert "run-7" not in "".join(lookup.as_lines(facts))


def test_what_depends_on_a_clock_stands_apart() -> None:
    (timing,) = lookup.timings(EVENTS)
    assert timing == {
        "epoch": 1,
        "kind": "timing",
        "data": {"decision": "fc1/0", "latency_ms": 0.5},
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("sqlite:////var/history.db", "sqlite:////var/history.db"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert lookup.without_password(url) == shown


def test_a_store_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lookup.check_store("sqlite:///a/h.db", "digits") == f"sqlite:///{tmp_path}/a/h.db"
    assert lookup.check_store("", "digits") == ""
    assert lookup.absolute("redis://host/0") == "redis://host/0"
    with pytest.raises(ConfigError, match="not complete"):
        lookup.check_store("sqlite:///", "digits")


def test_a_store_damaged_inside_is_found_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with SqliteStore(path) as store:
        store.append([Event(str(i), "k", "digits", data={"text": "x" * 200}) for i in range(300)])
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        lookup.check_store(f"sqlite:///{path}", "digits")
