"""``esper store``: a history checked, copied from place to place and compacted."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.contracts.events import LOST, Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import open_store
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES
from tests.servers import RedisServer


def esper(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["store", *arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with two runs in a scope, and one in another."""
    url = f"sqlite:///{tmp_path}/history.db"
    for scope, run in (("a", "one"), ("a", "two"), ("b", "one")):
        tracker = PerformanceTracker(store=url, scope=scope, run=run)
        selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
        for epoch in range(12):
            seed_idx, _ = selector.select_seed_now("fc1", [0, 1], SelectionContext(epoch))
            delta = PerformanceDelta(reward=0.1 * seed_idx + 0.001 * epoch)
            tracker.update_metrics_now("fc1", seed_idx, delta)
        assert tracker.events.journal is not None
        tracker.events.journal.close()
    return url


def events(url: str) -> list[Event]:
    with open_store(url) as store:
        return [event for _, event in store.read()]


def test_a_whole_store(url: str, tmp_path: Path) -> None:
    shown = esper("check", url).stdout
    assert "events        72 of 3 runs" in shown
    assert "'a' 48, 'b' 24" in shown
    found = json.loads(esper("check", str(tmp_path / "history.db"), "--json").stdout)
    assert found["whole"]
    assert found["kinds"] == {"decision": 36, "outcome": 36}


def test_odd_entries_and_holes_are_shown(url: str, tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "history.db") as store:
        store.append([Event("odd", "outcome", "a", data={"reward": 10**400})])
    with closing(sqlite3.connect(tmp_path / "history.db")) as file, file:
        file.execute("UPDATE events SET data = '{\"reward\": NaN}' WHERE position = 5")
        file.execute("DELETE FROM events WHERE position IN (10, 11)")
    shown = esper("check", url, code=1).stdout
    assert "odd entries   2" in shown
    assert "NaN is not a finite number" in shown
    assert "cannot be read: decision is 'missing'" in shown
    assert "missing: 'a/one' 9 to 10" in shown
    found = json.loads(esper("check", url, "--json", code=1).stdout)
    assert found["missing"] == [["a/one", 4, 4], ["a/one", 9, 10]]
    looked_at = CliRunner().invoke(app, ["inspect", url, "--scope", "a"])
    assert looked_at.exit_code == 0, looked_at.output
    assert "fc1" in looked_at.stdout


def test_damage_beside_the_entries_is_shown(url: str, tmp_path: Path) -> None:
    assert "damaged       0" in esper("check", url).stdout
    with closing(sqlite3.connect(tmp_path / "history.db")) as file:
        file.executescript(
            """PRAGMA writable_schema = ON;
               UPDATE sqlite_master SET sql = 'CREATE INDEX events_of_scope ON events (kind)'
               WHERE name = 'events_of_scope';"""
        )
    shown = esper("check", url, code=1).stdout
    assert "damaged: row 1 missing from index events_of_scope" in shown
    assert "readers may miss events" in shown
    found = json.loads(esper("check", url, "--json", code=1).stdout)
    assert not found["whole"]
    assert len(found["damage"]) == 10


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_no_store_is_made_to_be_compacted(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "typo.db"
    if there:
        file.touch()
    said = esper("compact", f"sqlite:///{file}", code=1).stderr
    assert "give the store that the runs wrote to" in said.replace("\n", " ")
    assert file.exists() == there
    assert not there or file.stat().st_size == 0


def test_what_is_exported_is_imported(url: str, tmp_path: Path) -> None:
    file, other = tmp_path / "events.jsonl", f"sqlite:///{tmp_path}/other.db"
    assert "72 events" in esper("export", url, str(file)).stderr
    assert "72 events" in esper("import", str(file), other).stderr
    assert events(other) == events(url)
    assert "0 of them new" in esper("import", str(file), other).stderr
    text = file.read_text(encoding="utf-8")
    for damaged in (text[:-40], text.replace('"reward": 0.1', '"reward": 9.1', 1), "x", "", "{}\n"):
        file.write_text(damaged, encoding="utf-8")
        assert "no file of events, or damaged" in esper("import", str(file), other, code=1).stderr
    assert events(other) == events(url)


def test_a_file_is_not_overwritten_unasked(url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("mine", encoding="utf-8")
    assert (
        "already; name another, or give --replace" in esper("export", url, str(file), code=2).stderr
    )
    assert file.read_text(encoding="utf-8") == "mine"
    esper("export", url, str(file), "--replace")
    assert "72 events" in esper("import", str(file), f"sqlite:///{tmp_path}/other.db").stderr


def test_an_event_of_a_newer_version_is_told(url: str) -> None:
    with open_store(url) as store:
        store.append([Event("new", "telepathy", "a", data={"reward": 1})])
    assert "unknown: 1 of kind 'telepathy', of a newer version" in esper("check", url).stdout
    found = json.loads(esper("check", url, "--json").stdout)
    assert (found["unknown"], found["whole"]) == ({"telepathy": 1}, True)


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    assert "events        0 of 0 runs" in esper("check", str(path)).stdout
    assert path.stat().st_size == 0  # to look at it changes nothing
    url = f"sqlite:///{path}"
    assert events(url) == []
    with open_store(url) as store:
        store.append([Event("x", "k")])
    assert len(events(url)) == 1


@pytest.mark.redis
def test_a_history_moves_to_a_server_and_back(
    url: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    remote = f"redis://127.0.0.1:{redis_server.port}/7"
    said = esper("migrate", url, remote).stderr
    assert "72 events, 72 of them new; the histories are equal, bit for bit" in said
    assert "72 events, 0 of them new" in esper("migrate", url, remote).stderr
    back = f"sqlite:///{tmp_path}/back.db"
    assert "equal, bit for bit" in esper("migrate", remote, back).stderr
    assert sorted(map(repr, events(back))) == sorted(map(repr, events(url)))
    esper("compact", remote)
    esper("check", remote)


def test_what_a_source_lacks_is_noted_in_the_target(url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "history.db")) as file, file:
        file.execute("DELETE FROM events WHERE position IN (10, 11)")
    target = f"sqlite:///{tmp_path}/other.db"
    esper("migrate", url, target)
    (lost,) = [event for event in events(target) if event.kind == LOST]
    assert (lost.writer, lost.data["first"], lost.number) == ("a/one", 9, 10)
    assert "noted as lost 2" in esper("check", target).stdout


def test_a_file_is_compacted(url: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with SqliteStore(path) as store:
        store.append([Event(str(n), "k", data={"text": "x" * 1000}) for n in range(500)])
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM events WHERE kind = 'k'")
    before = path.stat().st_size
    esper("compact", url)
    assert path.stat().st_size < before
    assert len(events(url)) == 72


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    for command in (("check",), ("compact",), ("export",)):
        arguments = [*command, "nowhere", *([str(tmp_path / "f")] if "export" in command else [])]
        assert len(esper(*arguments, code=2).stderr.splitlines()) == 1
    assert "there is no file" in esper("check", f"sqlite:///{tmp_path}/no.db", code=1).stderr
