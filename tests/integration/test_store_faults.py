"""What a shared history must survive: names, races, odd events, stalls, forgetful stores."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, final

import pytest
from typing_extensions import override

from esper.contracts.errors import StoreError
from esper.contracts.events import AGAIN, LOST, Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext
from esper.records.layer import LayerKnowledge
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import open_store
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.base import Choice, Draws, Metrics, Seeds
from esper.testing.writer_laws import numbers, told
from tests.servers import RedisServer

Start = Callable[..., RedisServer]
GAIN = PerformanceDelta(reward=0.1)

# Chooses and learns until it is told how often; says when it begins, and at each outcome.
TRAINER = """
import sys
from esper.contracts.errors import StoreError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES

url, scope, run, times = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
try:
    tracker = PerformanceTracker(store=url, scope=scope, run=run)
except StoreError as error:
    print(error, flush=True)
    sys.exit(3)
selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
print("ready", flush=True)
sys.stdin.readline()
for epoch in range(times):
    seed_idx, _ = selector.select_seed_now("fc1", [0, 1], SelectionContext(epoch))
    tracker.update_metrics_now("fc1", seed_idx, PerformanceDelta(reward=0.1))
    print(epoch, flush=True)
if times < 0:
    sys.stdin.readline()
tracker.events.journal.close()
"""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.db"
    else:
        yield request.getfixturevalue("own_redis_server")().url


def trainer(url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINER, url, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def outcomes(url: str) -> int:
    with open_store(url) as store:
        return len(list(store.read(kinds=["outcome"])))


# --- names and identities -------------------------------------------------------------------------


@pytest.mark.dist
def test_names_that_look_alike_lose_nothing(url: str) -> None:
    runs = [trainer(url, "a", "b/c", "10"), trainer(url, "a/b", "c", "10")]
    for run in runs:
        assert first_line(run) == "ready"
        run.communicate("go\n")
        assert run.returncode == 0
    assert outcomes(url) == 20


@pytest.mark.dist
def test_a_second_live_writer_of_a_run_is_refused_and_a_killed_one_is_not_waited_for(
    url: str,
) -> None:
    first = trainer(url, "s", "night", "-1")
    assert first_line(first) == "ready"
    second = trainer(url, "s", "night", "10")
    said, _ = second.communicate("go\n")
    assert second.returncode == 3
    assert f"'s/night' is written by process {first.pid}; end that, give this run" in said
    first.kill()
    first.communicate()
    third = trainer(url, "s", "night", "10")
    assert first_line(third) == "ready"
    third.communicate("go\n")
    assert third.returncode == 0
    assert outcomes(url) == 10


@pytest.mark.dist
def test_a_writer_that_slept_through_its_lease_writes_nothing_more(url: str) -> None:
    first = trainer(url, "s", "night", "10")
    assert first_line(first) == "ready"
    os.kill(first.pid, signal.SIGSTOP)
    with open_store(url) as store:
        _expire_leases(url)
        store.claim("s/night", "another 1 1 x", 60)
        store.append(told("s/night", 0))
    os.kill(first.pid, signal.SIGCONT)
    first.communicate("go\n")
    assert first.returncode != 0  # its close says that 20 events are lost
    assert outcomes(url) == 1


def _expire_leases(url: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute("UPDATE leases SET until = 0")
        return
    import redis  # noqa: PLC0415 (an extra)

    with redis.Redis.from_url(url) as client:
        client.delete("{esper}:leases")


def decided(tracker: PerformanceTracker) -> Decision:
    return SeedSelector(STRATEGIES.create("ucb"), tracker=tracker).decide(
        "fc1", [0], SelectionContext()
    )


@pytest.mark.parametrize("other", [0.1, 0.7])
def test_an_outcome_that_two_tell_counts_once(
    url: str, other: float, caplog: pytest.LogCaptureFixture
) -> None:
    journals = [Journal(open_store(url), patience_s=60) for _ in range(3)]
    first = PerformanceTracker(store=journals[0], run="a")
    decision = decided(first)
    second = PerformanceTracker(store=journals[1], run="b")
    first.flush()
    second.refresh()
    for tracker, reward in ((first, 0.1), (second, other)):
        delta = PerformanceDelta(reward=reward)
        tracker.update_metrics_now("fc1", 0, delta, decision=decision)
    for tracker in (first, second):
        tracker.refresh()
        assert tracker.get_layer_metrics("fc1")[0].total_outcomes == 1
    third = PerformanceTracker(store=journals[2])
    assert third.get_layer_metrics("fc1")[0].rewards == [0.1]
    (kept,) = [found for _, found in journals[2].read(kinds=[AGAIN])]
    assert kept.data["of"] == f"{decision.decision_id}//answer"
    assert ("told otherwise before" in caplog.text) is (other != 0.1)
    for journal in journals:
        journal.close()


# --- odd events -----------------------------------------------------------------------------------

PLACE = {"decision": "x/fc1/0", "layer": "fc1", "seed": 0, "blueprint": ""}
ODD: list[dict[str, Any]] = [
    {"reward": 10**400},
    {"reward": "0.1"},
    {"reward": None},
    {"reward": True},
    {"reward": 1e200},
    {"reward": 0.1, "loss_delta": []},
    {"reward": 0.1, "seed": 2**40},
    {"reward": 0.1, "seed": "0"},
    {"reward": 0.1, "layer": None},
    {"reward": 0.1, "layer": "x" * 20_000},
    {"reward": 0.1, "decision": 5},
    {"reward": 0.1, "kernel": {}},
    {"reward": 0.1, "reward_stderr": "0.01"},
]
CHOICE = {
    "epoch": 1,
    "strategy": "ucb",
    "reason": "drawn",
    "score": None,
    "scores": {"0": 0.5, "1": None},
    "propensity": 0.5,
    "fallback": False,
    "alternatives": [1],
    "random_key": [0, "fc1", 0],
}
ODD_CHOICES: list[dict[str, Any]] = [
    {"scores": {"-1": 0.5}},
    {"scores": {"٣": 0.5}},
    {"scores": {"123456789": 0.5}},
    {"scores": [0.5]},
    {"propensity": 1.5},
    {"propensities": {}},
    {"propensities": {"1": 0.5}},
    {"epoch": -1},
    {"propensities": {"0": "half"}},
    {"propensities": {"0": 0.5}, "propensity_error": None},
    {"features": None},
    {"features": [0.1, True]},
    {"layer_type": None},
    {"audition": None},
    {"random_key": [0, "fc1"]},
    {"ab": {"test": "t", "arm": "a"}},
    {"ab": {"test": "t", "arm": "a", "unit": "u", "more": "m"}},
    {"alternatives": [-1]},
    {"fallback": 0},
]


@pytest.mark.parametrize("strategy", ["ucb", "auto", "linucb"])
def test_an_odd_event_costs_itself_alone(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    running = PerformanceTracker(store=store, run="ours")
    selector = SeedSelector(STRATEGIES.create(strategy), tracker=running)
    bad = [Event(f"odd-{n}", "outcome", data=PLACE | data) for n, data in enumerate(ODD)]
    bad += [
        Event(f"odd-choice-{n}", "decision", data=PLACE | CHOICE | data)
        for n, data in enumerate(ODD_CHOICES)
    ]
    bad += [
        Event("odd-d", "decision", data=PLACE | {"epoch": 1}),
        Event("odd-e", "decision", data=PLACE | {"decision": "", "epoch": 10**30}),
        Event("odd-g", "graft", data=PLACE | {"kept": "yes"}),
        Event("odd-a", "audition", data=PLACE | {"gain": 0.1}),
        Event("odd-t", "timing", data=PLACE | {"latency_ms": "1"}),
        Event("odd-f", "failure", data={}),
    ]
    store.append([*bad, Event("good", "outcome", data=PLACE | {"reward": 0.25})])
    assert running.refresh() == len(bad) + 1
    fresh = PerformanceTracker(store=store)
    SeedSelector(STRATEGIES.create(strategy), tracker=fresh)
    for tracker in (running, fresh):
        assert tracker.get_layer_metrics("fc1")[0].rewards == [0.25]
    assert len(caplog.records) <= 3  # once for each reading of the log
    assert "passed over" in caplog.text
    selector.select_seed_now("fc1", [0, 1], SelectionContext())


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_whole_numbers_of_another_writer_are_numbers(strategy: str) -> None:
    """A program in JavaScript writes 1e20 as 100000000000000000000."""
    huge = 10**20
    store = MemoryStore()
    running = PerformanceTracker(store=store, run="ours")
    selector = SeedSelector(STRATEGIES.create(strategy), tracker=running, seed=0)
    context = SelectionContext()
    seed_idx, reason = selector.select_seed_now("fc1", [0, 1], context)
    running.update_metrics_now("fc1", seed_idx, GAIN)
    chosen = PLACE | CHOICE | {"propensities": {"0": 1}, "depth": huge, "scores": {"0": huge}}
    gains = dict.fromkeys(("gain", "stderr", "mean", "noise"), huge)
    store.append([
        Event("d", "decision", data=chosen | {"features": [huge] * len(reason.features)}),
        Event("a", "audition", data=PLACE | {"point": "x", "cohort": 1} | gains),
        Event("o", "outcome", data=PLACE | {"reward": huge, "reward_stderr": huge}),
    ])  # fmt: skip
    assert running.refresh() == 3
    fresh = PerformanceTracker(store=store)
    again = SeedSelector(STRATEGIES.create(strategy), tracker=fresh, seed=0)
    for each in (selector, again):
        each.select_seed_now("fc1", [0, 1], SelectionContext(9))


@final
class Refusing(SelectionStrategy):
    """A strategy of one's own that cannot learn what others chose."""

    name = "refusing"

    @override
    def begin(self, layer_name: str) -> LayerKnowledge:
        return Refused()

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        return self.chosen(viable[0], {viable[0]: 0.0}, {viable[0]: 1.0}, "the first")


class Refused(LayerKnowledge):
    """Knowledge that looks up what is not there."""

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        if decision is not None and decision.decision_id.startswith("x/"):
            raise KeyError("what another program wrote")

    @override
    def forget(self, seed_idx: int) -> None: ...

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def test_an_event_that_a_strategy_cannot_learn_from_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store, run="ours")
    selector = SeedSelector(Refusing(), tracker=tracker)
    store.append([
        Event("d", "decision", data=PLACE | CHOICE),
        Event("o", "outcome", data=PLACE | {"reward": 0.1}),
    ])  # fmt: skip
    assert tracker.refresh() == 2
    assert "cannot be learnt from: KeyError('what another program wrote')" in caplog.text
    selector.select_seed_now("fc1", [0, 1], SelectionContext(9))


# --- stores that stall ----------------------------------------------------------------------------


def epochs(url: str, hinder: Callable[[], object], count: int = 6) -> tuple[Journal, float]:
    """Seconds that the end of some epochs takes in all while the store is hindered."""
    journal = Journal(open_store(url))
    tracker = PerformanceTracker(store=journal, run="r")
    selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
    selector.select_seed_now("fc1", [0], SelectionContext())
    tracker.update_metrics_now("fc1", 0, GAIN)
    journal.flush()
    hinder()
    started = time.monotonic()
    for epoch in range(count):
        tracker.refresh()
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1], SelectionContext(epoch))
        tracker.update_metrics_now("fc1", seed_idx, GAIN)
        tracker.record_end("fc1", seed_idx, kept=True)
        assert tracker.position == 2 + 3 * (epoch + 1)
    return journal, time.monotonic() - started


@pytest.mark.redis
def test_a_stalled_server_holds_up_nothing(own_redis_server: Start) -> None:
    server = own_redis_server()
    journal, seconds = epochs(server.url, server.stall)
    assert seconds < 2.5  # of its timeouts, 15 s each, at most a moment; 0.2 s on a free machine
    assert len(journal.undelivered()) == journal.waiting == 18
    server.resume()
    journal.flush()
    assert len(list(journal.read())) == 20
    journal.close()


def test_a_locked_file_holds_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    SqliteStore(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        journal, seconds = epochs(f"sqlite:///{path}", lambda: other.execute("BEGIN IMMEDIATE"))
        assert seconds < 2.5  # of 30 s
        assert len(journal.undelivered()) == journal.waiting == 18
        other.execute("ROLLBACK")
    journal.flush()
    assert len(list(journal.read())) == 20
    journal.close()


def test_a_long_outage_is_kept_on_the_disk_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    journal = Journal(SqliteStore(path, busy_timeout_s=0.01), backlog_bytes=200_000)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for first in range(0, 6000, 500):
            journal.append_all(told("w", *range(first, first + 500)))
        other.execute("ROLLBACK")
    kept = journal.waiting
    assert 2000 < kept < 6000
    journal.flush()
    journal.append_all(told("w", 6000))
    journal.flush()
    found = [found for _, found in journal.read()]
    (gap,) = [one for one in found if one.kind == LOST]
    assert (gap.data["first"], gap.number) == (kept, 5999)
    assert numbers(journal.read(kinds=["outcome"])) == [*range(kept), 6000]
    with pytest.raises(StoreError, match=f"{6000 - kept} events were not stored and are lost"):
        journal.close()


# --- files that forget ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "replaced", "emptied"])
def test_a_file_that_goes_away_under_a_run_is_told_of(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    with Journal(SqliteStore(path)) as journal:
        journal.append_all(told("w", *range(100)))
        journal.flush()
        for part in tmp_path.iterdir() if how != "emptied" else [path]:
            part.unlink() if how != "emptied" else os.truncate(part, 0)
        if how == "replaced":
            SqliteStore(path).close()
        journal.append_all(told("w", 100))
        journal.flush()
        assert numbers(journal.read()) == list(range(101))
    assert "while it was open" in caplog.text
    with SqliteStore(path) as store:
        assert store.missing("w", 101) == []


@pytest.mark.parametrize("kept", [59, 20, 0])
def test_rows_that_are_gone_are_missed_by_their_writer(
    tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    with Journal(SqliteStore(path)) as journal:
        journal.append_all(told("w", *range(65)))
        journal.flush()
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM events WHERE position > ?", (kept,))
        journal.append_all([*told("v", 0), *told("w", 65)])
        journal.flush()
        assert sorted(found.number for _, found in journal.read() if found.writer == "w") == list(
            range(66)
        )
    assert f"{65 - kept} are told again, 0 are lost" in caplog.text


def test_a_reader_is_told_that_the_end_of_a_log_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    writer = Journal(SqliteStore(path))
    reader = PerformanceTracker(store=Journal(SqliteStore(path), patience_s=60), run="r")
    other = PerformanceTracker(store=writer, run="o")
    for _ in range(3):
        other.update_metrics_now("fc1", 0, GAIN)
    writer.flush()
    assert reader.refresh() == 3
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM events WHERE position > 1")
    with caplog.at_level(logging.WARNING):
        assert reader.refresh() == 0
    assert "ends before what was read from it; its last events are lost" in caplog.text
    other.update_metrics_now("fc1", 0, GAIN)  # puts back what is gone
    writer.flush()
    assert reader.refresh() == 1
    assert reader.get_layer_metrics("fc1")[0].total_outcomes == 4
    assert reader.refresh() == 0
    writer.close()


def test_a_lease_of_this_process_goes_to_the_latest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    first, second = (PerformanceTracker(store=url, run="night") for _ in range(2))
    second.update_metrics_now("fc1", 0, GAIN)
    first.update_metrics_now("fc1", 0, GAIN)
    ours, theirs = first.events.journal, second.events.journal
    assert ours is not None
    assert theirs is not None
    theirs.flush()
    ours.flush()
    assert "1 events are not stored: another writer of this process goes on" in caplog.text
    theirs.close()
    ours.close()
    assert outcomes(url) == 1
