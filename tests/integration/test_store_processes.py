"""Several processes at one store, and processes that die in the middle of a write."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.stores import open_store
from esper.testing.writer_laws import numbers
from tests.servers import RedisServer

# Waits for a line, so that all start together; says each number once it is stored.
WRITER = """
import sys
from itertools import count
from esper.contracts.events import Event
from esper.stores import open_store

url, worker, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with open_store(url) as store:
    for batch in range(batches) if batches else count():
        numbers = [2 * batch, 2 * batch + 1]
        store.append([
            Event(f"{worker}-{number}", "k", scope=worker, data={"number": number})
            for number in numbers
        ])
        for number in numbers:
            print(number, flush=True)
"""


def writer(url: str, worker: int, batches: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(worker), str(batches)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new/history.db"
        return
    server = request.getfixturevalue("own_redis_server")()
    assert isinstance(server, RedisServer)
    yield server.url


def test_four_processes_lose_nothing(url: str) -> None:
    batches = 200
    workers = [writer(url, worker, batches) for worker in range(4)]
    for process in workers:
        let_go(process)  # all four make the file, or the first key, at once
    for process in workers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with open_store(url) as store:
        for worker in range(4):
            assert numbers(store.read(scope=str(worker))) == list(range(2 * batches))
        everything = [(found.scope, found.data["number"]) for _, found in store.read()]
    assert len(everything) == 4 * 2 * batches
    for (scope, number), following in zip(everything[::2], everything[1::2], strict=True):
        assert following == (scope, number + 1)


def test_killed_writers_lose_nothing_acknowledged(url: str) -> None:
    for attempt in range(3):
        process = writer(url, attempt, 0)
        let_go(process)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(100 + attempt)]
        process.kill()
        rest = process.stdout.read()
        process.communicate()
        lines = ("".join(said) + rest).splitlines(keepends=True)
        acknowledged = [int(line) for line in lines if line.endswith("\n")]
        assert acknowledged == list(range(len(acknowledged)))
        with open_store(url) as store:
            stored = numbers(store.read(scope=str(attempt)))
            assert stored == list(range(len(stored)))
            assert len(stored) >= len(acknowledged)
            assert len(stored) % 2 == 0  # no batch is torn
