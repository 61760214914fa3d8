"""Pairs of choice and outcome a second, beside a bare client; opening; a store that stalls."""

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import redis

from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.assignment import knowledge_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES
from tests.servers import RedisServer, server_binary

SECONDS = 3.0
EVENTS = 100_000
BATCH = 500
GAIN = PerformanceDelta(reward=0.1)
ROW = json.dumps({"decision": "letter/run/fc1/12", "layer": "fc1", "reason": "x" * 300})


def rows() -> list[tuple[str, str, str]]:
    """Rates, latencies and times."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        found = _rates("sqlite", f"sqlite:///{folder}/h.db", str(folder / "bare.db"))
        found += _opening(folder / "old.db")
        found += [_stalled_file(folder / "stalled.db")]
        if binary := server_binary():
            server = RedisServer(binary, folder)
            server.start()
            stack.callback(server.kill)
            found += _rates("redis", server.url, str(server.port))
            found += [_batches(server), _stalled_server(server)]
    return found


def _rates(name: str, url: str, bare: str) -> list[tuple[str, str, str]]:
    found = []
    for count in (1, 4):
        ours = _together([url] * count, "ours")
        theirs = _together([bare] * count, name)
        rate, base = (sum(one["rate"] for one in side) for side in (ours, theirs))
        p99 = median(one["p99_ms"] for one in ours)
        half = median(one["p50_ms"] for one in ours)
        what = f"{name}, {count} process{'es' if count > 1 else ''}"
        beside, slow = f"{rate / base:.2f} x {base:,.0f}", f"99th percentile {p99:.2f}"
        found.append((f"pairs a second, {what}", f"{rate:,.0f}", beside))
        found.append((f"update_metrics_now, {what}", f"{half:.2f} ms", slow))
    return found


def _together(places: list[str], kind: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.history", kind]
    started = [
        subprocess.Popen([*command, place, str(number)], stdout=subprocess.PIPE, text=True)
        for number, place in enumerate(places)
    ]
    return [json.loads(one.communicate()[0]) for one in started]


def _work(kind: str, place: str, number: str) -> dict[str, float]:
    act = {"ours": _ours, "sqlite": _bare_sqlite, "redis": _bare_redis}[kind](place, number)
    waits = list[float]()
    end = time.perf_counter() + SECONDS
    while (now := time.perf_counter()) < end:
        waits.append(act(len(waits)) or time.perf_counter() - now)
    waits.sort()
    at = int(len(waits) * 0.99)
    return {"rate": len(waits) / SECONDS, "p50_ms": 1e3 * median(waits), "p99_ms": 1e3 * waits[at]}


def _ours(url: str, number: str) -> Any:
    tracker = PerformanceTracker(store=url, scope=f"s{number}")
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)

    def act(epoch: int) -> float:
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2, 3], SelectionContext(epoch))
        started = time.perf_counter()
        tracker.update_metrics_now("fc1", seed_idx, GAIN)
        return time.perf_counter() - started

    return act


def _bare_sqlite(path: str, number: str) -> Any:
    plain = sqlite3.connect(path, isolation_level=None, timeout=30)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = NORMAL")
    plain.execute(
        "CREATE TABLE IF NOT EXISTS log (position INTEGER PRIMARY KEY, op_id TEXT UNIQUE, "
        "scope TEXT, data TEXT)"
    )

    def act(epoch: int) -> float:
        plain.execute("BEGIN IMMEDIATE")
        two = [(f"{place}/{time.time_ns()}/{number}", "s", ROW) for place in "ab"]
        plain.executemany("INSERT INTO log (op_id, scope, data) VALUES (?, ?, ?)", two)
        plain.execute("COMMIT")
        return 0.0

    return act


def _bare_redis(port: str, number: str) -> Any:
    client = redis.Redis(port=int(port))

    def act(epoch: int) -> float:
        with client.pipeline() as pipe:
            for place in "ab":
                pipe.sadd("bare:ids", f"{place}/{number}/{epoch}")
                pipe.xadd("bare", {"op_id": f"{place}/{number}/{epoch}", "data": ROW})
            pipe.execute()
        return 0.0

    return act


def _batches(server: RedisServer) -> tuple[str, str, str]:
    """Pairs in batches of events, a script each, beside bare pipelines and bare calls."""
    from esper.stores import open_store  # noqa: PLC0415 (beside its use)

    client, pairs = redis.Redis(port=server.port), BATCH // 2
    one, numbers = _bare_redis(str(server.port), "one"), iter(range(10**9))

    def pipelined() -> None:
        with client.pipeline() as pipe:
            for number in [next(numbers) for _ in range(BATCH)]:
                pipe.sadd("bare:ids", f"batch/{number}")
                pipe.xadd("bare", {"op_id": f"batch/{number}", "data": ROW})
            pipe.execute()

    with open_store(server.url) as store:

        def ours() -> None:
            data = json.loads(ROW)
            store.append(
                [Event(f"b/{next(numbers)}", "note", "s", "r", data) for _ in range(BATCH)]
            )

        def single() -> None:
            for number in [next(numbers) for _ in range(pairs)]:
                one(number)

        took: dict[Callable[[], None], list[float]] = {ours: [], pipelined: [], single: []}
        for _ in range(20):  # in turn, so that all meet the same machine
            for act, times in took.items():
                started = time.perf_counter()
                act()
                times.append(time.perf_counter() - started)
    rates = [pairs / median(times) for times in took.values()]
    beside = f"{rates[0] / rates[1]:.2f} x pipelined, {rates[0] / rates[2]:.2f} x one call each"
    return f"pairs a second, redis, batches of {BATCH}", f"{rates[0]:,.0f}", beside


def _opening(path: Path) -> list[tuple[str, str, str]]:
    kept = MemoryStore()
    _play(PerformanceTracker(store=kept, scope="s", run="r0"), 500)
    base = [event for _, event in kept.read()]
    with SqliteStore(path) as store:
        for number in range(EVENTS // len(base)):
            store.append([_renamed(event, f"r{number}") for event in base])
    found, strategy = [], STRATEGIES.create("auto")
    for what in ("the first time", "after that, from its snapshot"):
        started = time.perf_counter()
        with SqliteStore(path) as store:
            begin = knowledge_of(strategy)  # as `Tamiyo` does
            tracker = PerformanceTracker(store=store, scope="s", run="new", begin=begin)
            SeedSelector(strategy, tracker=tracker)
            took = time.perf_counter() - started
        found.append((f"open {EVENTS:,} events, {what}", f"{took:.2f} s", "sqlite, auto"))
    return found


def _renamed(event: Event, run: str) -> Event:
    def new(name: str) -> str:
        return name.replace("s/r0/", f"s/{run}/")

    data = {**event.data, "decision": new(event.data["decision"])}
    names = (new(event.op_id), event.kind, "s", run, data, event.schema)
    return Event(*names, writer=f"s/{run}", number=event.number)


def _play(
    tracker: PerformanceTracker, epochs: int, hinder: Callable[[], object] = bool
) -> list[float]:
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
    took = []
    hinder()
    for epoch in range(epochs):
        started = time.perf_counter()
        tracker.refresh()
        seed_idx, _ = selector.select_seed_now("fc1", list(range(8)), SelectionContext(epoch))
        tracker.update_metrics_now("fc1", seed_idx, GAIN)
        took.append(time.perf_counter() - started)
    return took


def _stalled_file(path: Path) -> tuple[str, str, str]:
    SqliteStore(path).close()
    journal = Journal(SqliteStore(path))
    tracker = PerformanceTracker(store=journal, run="r")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        took = _play(tracker, 20, lambda: other.execute("BEGIN IMMEDIATE"))
        other.execute("ROLLBACK")
    journal.close()
    return _bound("a locked file", took)


def _stalled_server(server: RedisServer) -> tuple[str, str, str]:
    from esper.stores import open_store  # noqa: PLC0415 (beside its use)

    journal = Journal(open_store(server.url))
    tracker = PerformanceTracker(store=journal, run="r")
    took = _play(tracker, 20, server.stall)
    server.resume()
    journal.close()
    return _bound("a stalled server", took)


def _bound(what: str, took: list[float]) -> tuple[str, str, str]:
    name = f"end of an epoch (read, choose, record), {what}"
    return (name, f"{1e3 * median(took):.1f} ms", f"longest {1e3 * max(took):.0f} ms")


if __name__ == "__main__":
    print(json.dumps(_work(*sys.argv[1:4])))
