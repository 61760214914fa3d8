"""Cost of appending an event, beside the least that the same medium can do."""

import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import redis

from esper.contracts.events import Event
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.redis import RedisStore
from esper.stores.sqlite import SqliteStore
from tests.servers import RedisServer, server_binary

OUTCOME: dict[str, Any] = {
    "layer": "encoder.fc1",
    "seed": 3,
    "epoch": 12,
    "accuracy_delta": 0.0123,
    "loss_delta": 0.0317,
    "latency_ms": 0.41,
    "memory_mb": 1.5,
    "reward": 0.0291,
    "reward_stderr": 0.0042,
}
CALLS = 2000
BATCH = 50


class Row(NamedTuple):
    """One line of the table; times are medians in microseconds per event."""

    what: str
    median_us: float
    baseline: str
    baseline_us: float
    ratio: float


def rows() -> list[tuple[str, str, str]]:
    """Medians of appending."""
    return [
        (row.what, f"{row.median_us:.1f} µs", f"{row.ratio:.2f} x {row.baseline}")
        for row in measure()
    ]


def measure(calls: int = CALLS) -> list[Row]:
    """Measure every store; each call alternates with its baseline in one process."""
    number = count()

    def event() -> Event:
        return Event(f"outcome/{next(number)}", "outcome", "letter", "run-1", OUTCOME)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = _memory(event, calls, stack)
        found += _sqlite(event, calls, stack, folder)
        if binary := server_binary():
            found += _redis(event, calls, stack, RedisServer(binary, folder))
        return found


def _memory(event: Callable[[], Event], calls: int, stack: ExitStack) -> list[Row]:
    log: list[str] = []
    store = stack.enter_context(MemoryStore())
    journal = stack.enter_context(Journal(MemoryStore()))

    def bare() -> None:
        log.append(json.dumps(OUTCOME))

    name = "json.dumps + list.append"
    return [
        _row("memory append", lambda: store.append([event()]), name, bare, calls),
        _row("memory append by a journal", lambda: journal.append(event()), name, bare, calls),
    ]


def _sqlite(event: Callable[[], Event], calls: int, stack: ExitStack, folder: Path) -> list[Row]:
    plain = stack.enter_context(closing(sqlite3.connect(folder / "plain.db", isolation_level=None)))
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = NORMAL")
    plain.execute("CREATE TABLE log (position INTEGER PRIMARY KEY, data TEXT)")
    store = stack.enter_context(SqliteStore(folder / "history.db"))

    def bare() -> None:
        plain.execute("INSERT INTO log (data) VALUES (?)", (json.dumps(OUTCOME),))

    def bare_batch() -> None:
        plain.execute("BEGIN")
        plain.executemany(
            "INSERT INTO log (data) VALUES (?)", [(json.dumps(OUTCOME),) for _ in range(BATCH)]
        )
        plain.execute("COMMIT")

    return [
        _row("sqlite append", lambda: store.append([event()]), "sqlite3 INSERT", bare, calls),
        _row(
            f"sqlite append, {BATCH} at once",
            lambda: store.append([event() for _ in range(BATCH)]),
            f"sqlite3 INSERT, {BATCH} at once",
            bare_batch,
            calls // BATCH,
            per=BATCH,
        ),
    ]


def _redis(
    event: Callable[[], Event], calls: int, stack: ExitStack, server: RedisServer
) -> list[Row]:
    server.start()
    stack.callback(server.kill)
    client = stack.enter_context(redis.Redis(port=server.port))
    store = stack.enter_context(RedisStore(client))

    def bare() -> None:
        client.xadd("log", {"data": json.dumps(OUTCOME)})

    def bare_batch() -> None:
        with client.pipeline() as pipe:
            for _ in range(BATCH):
                pipe.xadd("log", {"data": json.dumps(OUTCOME)})
            pipe.execute()

    return [
        _row("redis append", lambda: store.append([event()]), "XADD", bare, calls),
        _row(
            f"redis append, {BATCH} at once",
            lambda: store.append([event() for _ in range(BATCH)]),
            f"XADD, {BATCH} in MULTI",
            bare_batch,
            calls // BATCH,
            per=BATCH,
        ),
    ]


def _row(
    what: str,
    act: Callable[[], object],
    baseline: str,
    bare: Callable[[], object],
    calls: int,
    *,
    per: int = 1,
) -> Row:
    times: dict[Callable[[], object], list[float]] = {act: [], bare: []}
    for _ in range(max(calls, 20)):
        for call, spent in times.items():
            start = perf_counter()
            call()
            spent.append((perf_counter() - start) / per * 1e6)
    ours, theirs = median(times[act]), median(times[bare])
    return Row(what, ours, baseline, theirs, ours / theirs)


def reading(events: int = 100_000) -> list[tuple[str, float]]:
    """Events per second of a whole read, and of one that keeps a hundredth by its scope."""
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = RedisServer(str(server_binary()), folder)
        server.start()
        stack.callback(server.kill)
        for name, store in {
            "memory": MemoryStore(),
            "sqlite": SqliteStore(folder / "history.db"),
            "redis": RedisStore.from_url(server.url),
        }.items():
            with store:
                for start in range(0, events, 1000):
                    store.append(
                        [
                            Event(f"o{i}", "outcome", f"scope{i % 100}", "r", OUTCOME)
                            for i in range(start, start + 1000)
                        ]
                    )
                for scope in (None, "scope7"):
                    began = perf_counter()
                    got = sum(1 for _ in store.read(scope=scope))
                    label = f"{name} read, {got} of {events}"
                    found.append((label, events / (perf_counter() - began)))
    return found


if __name__ == "__main__":
    for row in rows():
        print(
            f"{row.what:32} {row.median_us:8.1f} us   {row.baseline:32} "
            f"{row.baseline_us:8.1f} us   x {row.ratio:.2f}"
        )
    for label, rate in reading():
        print(f"{label:32} {rate:12,.0f} events of the log/s")
