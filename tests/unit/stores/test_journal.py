"""A failing store never stops the one who writes, and nothing is lost while it lives."""

import logging
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, final

import pytest
from typing_extensions import override

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores import MetricsStore
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.testing.writer_laws import event, numbers


@final
class Flaky(MetricsStore):
    """A memory store with a switch: while down, every append takes ``cost_s`` and fails."""

    durable: ClassVar[bool] = False

    def __init__(self, clock: "Clock") -> None:
        self.down = False
        self.cost_s = 0.0
        self.tries = 0
        self.batches_left: int | None = None
        self._inner = MemoryStore()
        self._time = clock

    @override
    def append(self, events: Sequence[Event]) -> None:
        self.tries += 1
        if self.down or self.batches_left == 0:
            self._time.now += self.cost_s
            raise StoreError("the store is down")
        if self.batches_left is not None:
            self.batches_left -= 1
        self._inner.append(events)

    @override
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        return self._inner.read(after, scope=scope, run=run, kinds=kinds)

    @override
    def close(self) -> None:
        self._inner.close()


@final
class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Flaky:
    return Flaky(clock)


@pytest.fixture
def journal(store: Flaky, clock: Clock) -> Journal:
    return Journal(store, clock=clock)


def test_writes_through(journal: Journal, store: Flaky) -> None:
    journal.append(event(0))
    journal.append_all([event(1), event(2)])
    assert numbers(store.read()) == numbers(journal.read()) == [0, 1, 2]
    assert (journal.waiting, journal.error) == (0, None)


def test_keeps_order_through_an_outage(
    journal: Journal, store: Flaky, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        journal.append(event(0))
        store.down = True
        for i in range(1, 1500):
            journal.append(event(i))
        assert (journal.waiting, numbers(journal.read())) == (1499, [0])
        assert isinstance(journal.error, StoreError)
        assert len(caplog.records) == 1
        assert "the store is down" in caplog.text
        store.down = False
        clock.now += 1
        journal.append(event(1500))
        journal.append(event(1501))
    assert journal.waiting == 0
    assert numbers(journal.read()) == list(range(1502))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "answers again" in caplog.text


def test_tries_grow_rarer(journal: Journal, store: Flaky, clock: Clock) -> None:
    store.down = True
    tried_at = []
    for number in range(3000):
        before = store.tries
        journal.append(event(number))
        if store.tries > before:
            tried_at.append(clock.now)
        clock.now += 0.5
    pauses = [later - earlier for earlier, later in pairwise(tried_at)]
    assert pauses[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_batch_may_fail_half_way_through_the_delivery(
    journal: Journal, store: Flaky, clock: Clock
) -> None:
    store.down = True
    journal.append_all([event(i) for i in range(1200)])
    store.down, store.batches_left = False, 1
    with pytest.raises(StoreError, match="700 events are not stored yet: the store is down"):
        journal.flush()
    assert numbers(journal.read()) == list(range(500))
    store.batches_left = None
    journal.flush()
    assert numbers(journal.read()) == list(range(1200))


def test_flush_tries_now_and_raises(journal: Journal, store: Flaky) -> None:
    journal.flush()
    store.down = True
    journal.append(event(0))
    with pytest.raises(StoreError, match="1 events are not stored yet: the store is down"):
        journal.flush()
    store.down = False
    journal.flush()
    assert numbers(journal.read()) == [0]


@pytest.mark.parametrize("down", [False, True])
def test_a_bad_event_is_refused_and_blocks_nothing(
    journal: Journal, store: Flaky, clock: Clock, down: bool
) -> None:
    store.down = down
    journal.append(event(0))
    with pytest.raises(ConfigError, match=r"data\.x is nan"):
        journal.append_all([event(1), Event("bad", "k", data={"x": float("nan")})])
    store.down = False
    clock.now += 1
    journal.append(event(2))
    assert numbers(journal.read()) == [0, 2]


def test_what_waits_cannot_be_changed(journal: Journal, store: Flaky) -> None:
    store.down = True
    data = {"number": 0}
    journal.append(Event("x", "k", data=data))
    data["number"] = 1
    store.down = False
    journal.flush()
    assert numbers(journal.read()) == [0]


def test_close_delivers_or_says_what_is_lost(journal: Journal, store: Flaky) -> None:
    store.down = True
    journal.append_all([event(0), event(1)])
    with pytest.raises(StoreError, match="2 events were not stored and are lost: the store is"):
        journal.close()
    journal.close()
    for use in (lambda: journal.append(event(2)), journal.flush, lambda: list(journal.read())):
        with pytest.raises(StoreError, match="closed"):
            use()


def test_close_delivers_at_the_last_moment(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "h.db"
    with Journal(SqliteStore(path, busy_timeout_s=0.05), clock=clock) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            journal.append(event(0))
            assert journal.waiting == 1
        assert clock.now == 0.0
    with SqliteStore(path) as store:
        assert numbers(store.read()) == [0]


def test_no_events_are_no_news(journal: Journal, store: Flaky) -> None:
    store.down = True
    journal.append_all([])
    assert (store.tries, journal.error) == (0, None)
