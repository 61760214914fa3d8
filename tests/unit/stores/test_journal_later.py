"""What is handed over for later is written in its place, soon, and when the process ends."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import pytest

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.stores import leases
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.testing.writer_laws import event, numbers, told


def made(number: int) -> Callable[[], Event]:
    return lambda: event(number)


def test_it_is_written_before_what_comes_after_it() -> None:
    store = MemoryStore()
    journal = Journal(store)
    journal.later(event(0))
    journal.later(made(1))
    assert numbers(store.read()) == []
    assert journal.waiting == 2
    journal.append(event(2))
    journal.later(event(3))
    journal.append_all([event(4), event(5)])
    assert numbers(store.read()) == [0, 1, 2, 3, 4, 5]
    assert journal.waiting == 0


@pytest.mark.parametrize("ask", [Journal.catch_up, Journal.flush, lambda one: list(one.read())])
def test_whoever_asks_finds_it(ask: Callable[[Journal], object]) -> None:
    store = MemoryStore()
    journal = Journal(store)
    journal.later(made(0))
    ask(journal)
    assert numbers(store.read()) == [0]


def test_flush_does_not_wait_for_what_others_add_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    journal, write = Journal(store), store.append

    def append(events: Sequence[Event]) -> None:
        if events[0].data["number"] == 0:
            journal.later(event(1))  # as another thread does
        write(events)

    monkeypatch.setattr(store, "append", append)
    journal.later(event(0))
    journal.flush()
    assert numbers(store.read()) == [0]
    assert journal.waiting == 1
    journal.flush()
    assert journal.waiting == 0


def test_it_is_written_when_the_journal_is_closed(tmp_path: Path) -> None:
    address = f"{tmp_path}/log.db"
    with Journal(SqliteStore(address)) as journal:
        journal.later(made(0))
    with SqliteStore(address) as store:
        assert numbers(store.read()) == [0]
    with pytest.raises(StoreError, match="closed"):
        journal.soon()


def test_it_is_written_soon_although_nobody_does_anything() -> None:
    store = MemoryStore()
    journal = Journal(store)
    for number in range(3):  # as long as the thread lives, and when another must be begun
        journal.later(made(number))
        journal.soon()
        _wait_for(lambda upto=number + 1: len(numbers(store.read())) == upto)  # type: ignore[misc]


def test_a_choice_that_only_the_tracker_is_told_of_is_written_soon() -> None:
    store = MemoryStore()
    PerformanceTracker(store=store).record_selection("fc1", 0)
    _wait_for(lambda: len(list(store.read())) == 1)


def _fails(store: MemoryStore, events: Sequence[Event]) -> None:
    raise StoreError("down")


def test_what_waits_for_a_failing_store_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    journal = Journal(store)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "append", _fails)
        journal.append(event(0))
    assert journal.error is not None
    journal.later(event(1))
    journal.flush()
    assert numbers(store.read()) == [0, 1]


def test_an_event_that_cannot_be_written_holds_up_no_other() -> None:
    store = MemoryStore()
    journal = Journal(store)
    journal.later(event(0))
    journal.later(lambda: Event("bad", "k", data={"value": float("nan")}))
    journal.later(event(1))
    with pytest.raises(ConfigError, match="'bad'"):
        journal.catch_up()
    assert numbers(store.read()) == [0, 1]
    journal.catch_up()


def test_an_event_that_cannot_be_made_holds_up_no_other() -> None:
    def broken() -> Event:
        raise ZeroDivisionError

    store = MemoryStore()
    journal = Journal(store)
    for one in (made(0), broken, made(1)):
        journal.later(one)
    with pytest.raises(ZeroDivisionError):
        journal.catch_up()
    assert numbers(store.read()) == [0]
    journal.catch_up()
    assert numbers(store.read()) == [0, 1]


def test_an_event_that_cannot_be_written_is_no_reason_not_to_write_the_next() -> None:
    store = MemoryStore()
    journal = Journal(store)
    journal.later(lambda: Event("bad", "k", data={"value": float("nan")}))
    with pytest.raises(ConfigError, match="'bad'"):
        journal.append(event(0))
    assert numbers(store.read()) == [0]


def test_a_journal_is_closed_although_an_event_cannot_be_written(tmp_path: Path) -> None:
    store = SqliteStore(f"{tmp_path}/log.db")
    journal = Journal(store)
    journal.later(event(0))
    journal.later(lambda: Event("bad", "k", data={"value": float("nan")}))
    with pytest.raises(ConfigError, match="'bad'"):
        journal.close()
    with pytest.raises(StoreError, match="closed"):
        store.append([event(1)])
    with SqliteStore(f"{tmp_path}/log.db") as again:
        assert numbers(again.read()) == [0]


def test_without_a_thread_it_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = MemoryStore()
    journal = Journal(store)
    for number in range(2):
        journal.later(event(number))
        with monkeypatch.context() as patch:
            patch.setattr(Thread, "start", none_left)
            journal.soon()
        assert numbers(store.read()) == list(range(number + 1))


def test_who_reads_by_another_journal_finds_it_too() -> None:
    store = MemoryStore()
    journal = Journal(store)
    journal.later(event(0))
    assert numbers(Journal(store).read()) == [0]


def test_the_thread_says_what_it_could_not_write(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(MemoryStore())
    journal.later(lambda: Event("bad", "k", data={"value": float("nan")}))
    journal.soon()
    _wait_for(lambda: "'bad'" in caplog.text)


ENDING = """
import os, sys
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.stores.sqlite import SqliteStore

tracker = PerformanceTracker(store=SqliteStore(sys.argv[1]), run="r")
selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
decision = selector.decide("fc1", [0, 1], SelectionContext())
delta = PerformanceDelta(reward=0.1)
tracker.update_metrics_now("fc1", decision.seed_idx, delta, decision=decision)
selector.decide("fc1", [0, 1], SelectionContext())
if sys.argv[2] == "kill":
    os._exit(0)
"""


@pytest.mark.parametrize(("ending", "most_lost"), [("return", 0), ("kill", 1)])
def test_a_process_that_ends_loses_nothing_and_one_that_is_killed_no_outcome(
    tmp_path: Path, ending: str, most_lost: int
) -> None:
    address = f"{tmp_path}/log.db"
    subprocess.run([sys.executable, "-c", ENDING, address, ending], check=True)
    with SqliteStore(address) as store:
        kinds = [found.kind for _, found in store.read()]
    wanted = ["decision", "outcome", "decision"]
    assert kinds in [wanted[: len(wanted) - lost] for lost in range(most_lost + 1)]


UNASKED = """
import sys
from esper.contracts.events import Event
from esper.stores import leases
from esper.stores.journal import Journal
from esper.stores.sqlite import SqliteStore

journal = Journal(SqliteStore(sys.argv[1]))
journal.later(Event("a", "k"))
"""


def test_what_nobody_asked_to_be_written_soon_is_written_at_the_end(tmp_path: Path) -> None:
    address = f"{tmp_path}/log.db"
    subprocess.run([sys.executable, "-c", UNASKED, address], check=True)
    with SqliteStore(address) as store:
        assert [found.op_id for _, found in store.read()] == ["a"]


FORKING = """
import os, time, threading
from esper.contracts.events import Event
from esper.stores import leases
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore

class Slow:
    durable = False
    def append(self, events): time.sleep(0.3)

journal = Journal(Slow())
journal.later(Event("a", "k"))
HOLD
time.sleep(0.15)  # the thread is in append now and holds the lock
journal.later(Event("b", "k"))
if not os.fork():
    assert not journal.waiting
    journal.append(Event("c", "k"))
    os._exit(0)
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 0
assert journal.waiting <= 1
"""


@pytest.mark.skipif(not hasattr(sys, "abiflags"), reason="no fork here")
@pytest.mark.parametrize(
    "hold", ["journal.soon()", "threading.Thread(target=journal.catch_up).start()"]
)
def test_a_forked_process_neither_waits_nor_writes_twice(hold: str) -> None:
    code = FORKING.replace("HOLD", hold)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def _wait_for(answer: Callable[[], bool]) -> None:
    patience = time.monotonic() + 20
    while not answer():
        assert time.monotonic() < patience
        time.sleep(0.005)


def test_the_latest_writer_of_a_process_keeps_its_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SECONDS", 0.03)  # renewed every hundredth of a second
    address = f"{tmp_path}/log.db"
    first, second = Journal(SqliteStore(address)), Journal(SqliteStore(address))
    for journal, numbered in ((first, (0, 1)), (second, (2, 3))):
        journal.claim("w")
        journal.append_all(told("w", *numbered))
    time.sleep(0.1)  # the first would renew it meanwhile
    second.append_all(told("w", 4))
    second.flush()
    first.append_all(told("w", 2))
    first.close()
    assert "1 events are not stored: another writer of this process goes on with 'w'" in caplog.text
    second.append_all(told("w", 5))
    second.close()
    with SqliteStore(address) as store:
        assert numbers(store.read()) == [0, 1, 2, 3, 4, 5]
