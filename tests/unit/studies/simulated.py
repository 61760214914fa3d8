"""Logs of a world whose truth is known: seeds with fixed gains, and noise."""

from collections.abc import Sequence
from random import Random  # noqa: TID251 (a seeded world of the tests' own)

from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.base import MetricsStore
from esper.stores.memory import MemoryStore
from esper.strategies import SelectionStrategy
from esper.studies.logged.logs import Log

GAINS = (0.0, 0.010, 0.020, 0.005)
NAMES = dict(enumerate(("bottleneck", "gate", "glu", "lowrank")))


def record(
    strategy: SelectionStrategy | Assignment,
    *,
    choices: int,
    seed: int = 0,
    store: MetricsStore | None = None,
    gains: Sequence[float] = GAINS,
    noise: float = 0.02,
    failing: str = "",
) -> MetricsStore:
    """Let a strategy, or a test of several, choose in two layers, and write down what came of it.

    Args:
        strategy: Who chooses.
        choices: How often.
        seed: Of choices and noise; the run is named after it.
        store: Where; a new one in memory if not given.
        gains: What each seed is worth.
        noise: Standard deviation around it.
        failing: An arm half of whose grafts fail.
    """
    store = MemoryStore() if store is None else store
    tracker = PerformanceTracker(store=store, scope="sim", run=f"r{seed}")
    selector = SeedSelector(strategy, tracker=tracker, seed=seed)
    random = Random(seed)
    for epoch in range(choices):
        layer = f"fc{1 + epoch % 2}"
        context = SelectionContext(current_epoch=epoch, layer_type="Linear", blueprints=NAMES)
        decision = selector.decide(layer, range(len(gains)), context)
        seed_idx = decision.seed_idx
        if failing and decision.ab and decision.ab.arm == failing and random.random() < 0.5:
            tracker.record_failure(layer, seed_idx, "it broke", decision=decision)
            continue
        reward = random.gauss(gains[seed_idx], noise)
        delta = PerformanceDelta(reward=reward, latency_ms=0.5)
        tracker.update_metrics_now(layer, seed_idx, delta, decision=decision)
        tracker.record_end(layer, seed_idx, reward > 0, decision=decision)
    return store


def log_of(store: MetricsStore) -> Log:
    """Everything in a store as one log."""
    return Log(name="simulated", events=events_of(store))


def events_of(store: MetricsStore) -> list[Event]:
    """The events of a store, in order."""
    return [event for _, event in store.read()]
