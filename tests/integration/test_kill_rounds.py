"""Kill -9 at random over trainer, service and server together: what was stored stays, once each.

Three rounds; with ``ESPER_LONG=1`` a hundred, which take a quarter of an hour.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random  # noqa: TID251 (seeded)

import pytest

from esper.stores import open_store
from tests.rounds import rounds
from tests.servers import RedisServer
from tests.services import Service

EPOCHS = 40
TRAINER = f"""
import sys, time
from esper.contracts.errors import StoreError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES

url, run = sys.argv[1:]
tracker = PerformanceTracker(store=url, scope="s", run=run)
selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
journal = tracker.events.journal
print("begun", flush=True)

def stored(patience):
    deadline = time.monotonic() + patience
    while True:
        try:
            journal.flush(2)
            return True
        except StoreError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

for epoch in range({EPOCHS}):
    seed, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
    tracker.update_metrics_now("fc1", seed, PerformanceDelta(reward=0.1 * seed))
    if stored(0):
        print(epoch + 1, flush=True)
    time.sleep(0.01)
assert stored(120)
journal.close()
print({EPOCHS}, flush=True)
"""

pytestmark = [pytest.mark.dist, pytest.mark.redis]


@pytest.mark.slow
@pytest.mark.timeout(rounds(600, 3600))
def test_whoever_is_killed_nothing_is_lost_or_doubled(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis_server("--appendonly", "yes", "--appendfsync", "always")
    service = Service(tmp_path, server.url, "--rate", "1000000")
    try:
        service.start()
        random, told = Random(13), dict[str, int]()
        killed = Counter[str]()
        for number in range(rounds(3, 100)):
            run = f"r{number}"
            trainer = subprocess.Popen(
                [sys.executable, "-c", TRAINER, service.url, run], stdout=subprocess.PIPE, text=True
            )
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "begun\n"
            victims = random.sample(["trainer", "service", "server"], random.choice([1, 1, 2, 3]))
            if number == 0:
                victims = ["trainer", "service", "server"]
            for victim in victims:
                time.sleep(random.uniform(0.0, 0.3))
                killed[victim] += 1
                kills = {"trainer": trainer.kill, "service": service.kill, "server": server.kill}
                kills[victim]()
            if "server" in victims:
                server.start()
            if "service" in victims:
                service.start()
            said, _ = trainer.communicate(timeout=300)
            assert "trainer" in victims or trainer.returncode == 0, said
            told[run] = int((said.split() or ["0"])[-1])
    finally:
        service.kill()
    with open_store(server.url) as store:
        for run, epochs in told.items():
            events = [event for _, event in store.read(scope="s", run=run)]
            outcomes = [event.data["decision"] for event in events if event.kind == "outcome"]
            decisions = [event.data["decision"] for event in events if event.kind == "decision"]
            assert len(set(outcomes)) == len(outcomes) >= epochs
            assert len(set(decisions)) == len(decisions) >= epochs
            assert set(outcomes) <= set(decisions)
            assert store.missing(f"s/{run}", store.next_number(f"s/{run}")) == []
            assert {event.kind for event in events} == {"outcome", "decision"}  # none is noted lost
    assert set(killed) == {"trainer", "service", "server"}
