"""Four processes of ``esper train`` share one history, over Redis and over the service."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.stores import open_store
from tests.servers import RedisServer
from tests.services import Service

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.trains]

COMMAND = [sys.executable, "-m", "esper", "train", "digits", "--epochs", "6", "--no-static"]
TRAINERS = range(4)


@pytest.fixture(params=["http", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "redis":
        begin: Callable[..., RedisServer] = request.getfixturevalue("own_redis_server")
        yield begin().url
        return
    service = Service(tmp_path, f"sqlite:///{tmp_path}/history.db").start()
    yield service.url
    service.kill()


def started(url: str, runs: Path, seed: int) -> "subprocess.Popen[bytes]":
    asked = [*COMMAND, "--seed", str(seed), "--runs", str(runs), "--store", url, "--json"]
    with (runs / f"{seed}.json").open("wb") as out, (runs / f"{seed}.log").open("wb") as log:
        return subprocess.Popen(asked, stdout=out, stderr=log)


def test_four_trainers_share_one_history_and_a_fifth_begins_with_it(
    url: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    together = [started(url, runs, seed) for seed in TRAINERS]
    for seed, process in zip(TRAINERS, together, strict=True):
        assert process.wait(400) == 0, (runs / f"{seed}.log").read_text()
    with open_store(url) as store:
        events = [event for _, event in store.read(scope="digits")]
        writers = {event.writer for event in events if event.writer}
        assert len(writers) == len(TRAINERS)
        for writer in writers:
            assert store.missing(writer, store.next_number(writer)) == []
        tracker = PerformanceTracker(store=store, scope="digits")
        known = {
            name: sum(seed.outcomes for seed in layer.seeds.values())
            for name in tracker.layer_names
            if (layer := tracker.layer(name)) is not None
        }
    assert len({event.op_id for event in events}) == len(events)
    outcomes = Counter(event.data["layer"] for event in events if event.kind == "outcome")
    assert known == dict(outcomes)
    assert len({event.run for event in events if event.kind == "outcome"}) == len(TRAINERS)
    check = subprocess.run(
        [sys.executable, "-m", "esper", "store", "check", url, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(check.stdout)["missing"] == []
    assert started(url, runs, 4).wait(400) == 0
    with open_store(url) as store:
        run = {event.run for _, event in store.read(scope="digits")} - {e.run for e in events}
        first = next(e for _, e in store.read(run=run.pop(), kinds=["decision"]))
    tried = {e.data["seed"] for e in events if e.kind == "outcome"}
    assert "untried" not in first.data["reason"] or first.data["seed"] not in tried
