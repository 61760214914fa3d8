"""A disk that is full, clocks that jump, and connections that are not trusted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from esper.contracts.errors import StoreError
from esper.server.chooser import Chooser
from esper.server.ranks import Ranks, Settings
from esper.stores import open_store
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.testing.writer_laws import STRANGER, numbers, told
from tests.services import Service

FULL = """
import resource, sys
from esper.contracts.errors import StoreError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES

tracker = PerformanceTracker(store=sys.argv[1], scope="s", run="r")
selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)

def play(epochs):
    for epoch in epochs:
        seed, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
        tracker.update_metrics_now("fc1", seed, PerformanceDelta(reward=0.1 * seed))

play(range(20))
journal = tracker.events.journal
journal.flush()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # no file may grow beyond
play(range(20, 700))
try:
    journal.flush(5)
except StoreError as error:
    print("full:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
play(range(700, 710))
journal.flush(30)
journal.close()
print("stored")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.dist
def test_a_full_disk_stops_nobody_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    done = subprocess.run(
        [sys.executable, "-c", FULL, url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    full, stored = done.stdout.splitlines()
    assert "full: " in full
    assert "events are not stored yet" in full
    assert "history.db" in full
    assert stored == "stored"
    with open_store(url) as store:
        assert sum(1 for _ in store.read(kinds=["outcome"])) == 710
        assert store.missing("s/r", 1420) == []


def test_a_clock_that_jumps_ahead_frees_leases_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]
    monkeypatch.setattr("esper.stores.sqlite.time.time", lambda: now[0])
    with SqliteStore(tmp_path / "x.db") as one, SqliteStore(tmp_path / "x.db") as other:
        one.claim("w", STRANGER, 30)
        one.append(told("w", 0))
        assert one.reserve("layer", "3", "first", 3600)
        now[0] += 86_400
        assert other.reserve("layer", "3", "second", 3600)  # early; a late outcome counts anyway
        other.claim("w", STRANGER + "2", 30)
        with pytest.raises(StoreError, match="is written by another process now"):
            one.append(told("w", 1))
        now[0] -= 2 * 86_400
        assert not one.reserve("layer", "3", "first", 3600)
        assert other.reserve("layer", "3", "second", 0)  # its outcome frees it whatever the clock
        assert one.reserve("layer", "3", "first", 3600)
        other.append(told("w", 1))
        assert numbers(one.read()) == [0, 1]


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_deferred_events_do_not_hang_on_the_wall_clock(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, wall = [100.0], time.time()
    chooser = Chooser(MemoryStore(), "s", "auto", clock=lambda: ticks[0])
    ranks = Ranks(chooser, Settings(wait_s=60.0))
    ranks.rank(["red", "blue"], "a", excluded=[], deferred=True)
    monkeypatch.setattr(time, "time", lambda: wall + jump)
    ranks.activate("a")
    ranks.rank(["red", "blue"], "b", excluded=[], deferred=True)
    ranks.reward("a", 1.0)  # its time is not over
    ticks[0] += 61
    ranks.rank(["red", "blue"], "c", excluded=[], deferred=False)
    kinds = [event.kind for _, event in chooser._store.read(kinds=["outcome", "withdrawal"])]
    assert kinds == ["outcome", "withdrawal"]  # "b" was never activated
    chooser.close()


@pytest.mark.dist
def test_a_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    service = Service(
        tmp_path,
        f"sqlite:///{tmp_path}/history.db",
        *("--certificate", str(tmp_path / "cert.pem")),
        *("--private-key", str(tmp_path / "key.pem")),
        ca=tmp_path / "ca.pem",
    ).start()
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with open_store(service.url) as store:
            store.append(told("w", 0))
            assert numbers(store.read()) == [0]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "stranger.pem"))
        with pytest.raises(StoreError, match=r"cannot be reached.*[Cc]ertificate") as caught:
            open_store(service.url)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(StoreError, match="cannot be reached"):
            open_store(service.url.replace("https", "http"))
    finally:
        service.kill()
