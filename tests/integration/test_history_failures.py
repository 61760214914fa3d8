"""A store that fails in mid-run: training goes on, choices too, and nothing is lost."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.stores import open_store
from esper.stores.sqlite import SqliteStore
from tests.servers import RedisServer
from tests.unit.services.small_run import SmallRun, same, settings

EPOCHS = 10
GROWTH = settings(max_active=1, keep_stderrs=1.0)


def a_run(store: Any) -> SmallRun:
    return SmallRun(config=GROWTH, options={"store": store, "run": "night"})


@pytest.fixture(scope="module")
def undisturbed() -> tuple[SmallRun, list[Event]]:
    run = a_run(None).run(EPOCHS)
    return run, run.events()


def equals(run: SmallRun, undisturbed: tuple[SmallRun, list[Event]]) -> bool:
    """Whether the run chose and trained as if its store had never failed."""
    whole = undisturbed[0]
    assert [str(r) for r in run.reports] == [str(r) for r in whole.reports]
    return same(dict(run.model.state_dict()), dict(whole.model.state_dict()))


def complete(found: list[Event], undisturbed: tuple[SmallRun, list[Event]]) -> bool:
    """Whether a store has all of the log; clocks stand beside it, and `close` tells of the end."""
    wanted = {event.op_id: event for event in undisturbed[1]}
    closing = [event for event in found if event.kind in {"end", "withdrawal"}]
    beside = {event.op_id for event in closing if event.op_id not in wanted}
    found = [event for event in found if event.kind != "clock" and event.op_id not in beside]
    return {event.op_id: event for event in found} == wanted and len(found) == len(wanted)


def test_a_locked_sqlite_file(
    tmp_path: Path,
    undisturbed: tuple[SmallRun, list[Event]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "history.db"
    run = a_run(SqliteStore(path, busy_timeout_s=0.01)).run(3)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING):
        run.run(9, first=3)
        assert run.engine.journal.waiting > 10
        other.execute("ROLLBACK")
        other.close()
        run.run(EPOCHS, first=9)
        run.engine.close()
    messages = [record.getMessage() for record in caplog.records]
    assert any("the store fails, the run goes on" in m and "locked" in m for m in messages)
    assert "the store answers again; everything that waited is stored" in messages
    assert equals(run, undisturbed)
    assert complete([e for _, e in SqliteStore(path).read()], undisturbed)


def test_an_sqlite_table_that_vanishes_and_comes_back(
    tmp_path: Path, undisturbed: tuple[SmallRun, list[Event]]
) -> None:
    path = tmp_path / "history.db"
    run = a_run(SqliteStore(path, busy_timeout_s=0.01)).run(4)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("ALTER TABLE events RENAME TO gone")
        run.run(8, first=4)
        with pytest.raises(StoreError, match="not stored yet"):
            run.engine.journal.flush()
        other.execute("ALTER TABLE gone RENAME TO events")
    run.run(EPOCHS, first=8)
    run.engine.close()
    assert equals(run, undisturbed)
    assert complete([e for _, e in SqliteStore(path).read()], undisturbed)


def test_a_file_that_stays_broken_loses_nothing_silently(
    tmp_path: Path, undisturbed: tuple[SmallRun, list[Event]]
) -> None:
    path = tmp_path / "history.db"
    run = a_run(f"sqlite:///{path}").run(4)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("DROP TABLE events")
    other.close()
    run.run(EPOCHS, first=4)
    assert equals(run, undisturbed)
    waiting = run.engine.journal.waiting
    with pytest.raises(StoreError, match=r"\d+ events were not stored and are lost") as caught:
        run.engine.close()
    assert int(str(caught.value).split()[0]) > waiting  # and the end of the run


@pytest.mark.redis
def test_a_redis_server_that_is_killed_and_comes_back(
    own_redis_server: Callable[..., RedisServer],
    undisturbed: tuple[SmallRun, list[Event]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # With appendfsync always, what was acknowledged survives the kill.
    server = own_redis_server("--appendfsync", "always")
    run = a_run(f"{server.url}?socket_timeout=1").run(4)
    server.kill()
    with caplog.at_level(logging.WARNING):
        run.run(9, first=4)
        assert run.engine.journal.waiting > 10
        server.start()
        run.run(EPOCHS, first=9)
        run.engine.journal.flush()
    messages = [record.getMessage() for record in caplog.records]
    assert any("the store fails, the run goes on" in message for message in messages)
    assert equals(run, undisturbed)
    run.engine.close()
    after = open_store(server.url)
    assert complete([event for _, event in after.read()], undisturbed)
    after.close()


@pytest.mark.redis
def test_a_checkpoint_taken_while_the_store_is_away_is_whole(
    own_redis_server: Callable[..., RedisServer], undisturbed: tuple[SmallRun, list[Event]]
) -> None:
    server = own_redis_server("--appendfsync", "always")
    run = a_run(server.url).run(4)
    server.kill()
    run.run(8, first=4)
    model, engine = run.model.state_dict(), run.engine.state_dict()
    optimizer, random = run.optimizer.state_dict(), run.state()["random"]
    del run  # the process dies, and what waited in it
    server.start()
    again = a_run(server.url)
    again.model.load_state_dict(model)
    again.engine.load_state_dict(engine)
    again.optimizer.load_state_dict(optimizer)
    again.reports = undisturbed[0].reports[:8]
    torch.set_rng_state(random)
    again.run(EPOCHS, first=8)
    assert equals(again, undisturbed)
    learnt = ("decision", "outcome", "graft")
    assert again.facts(*learnt) == undisturbed[0].facts(*learnt)
    again.engine.close()
