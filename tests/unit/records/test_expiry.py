"""Decisions without an outcome: they count as trials, but not for ever, and may still come."""

from collections.abc import Callable

import pytest

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.history import LATE
from esper.records.layer import EXPIRY
from esper.records.seed import OPEN
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.strategies.ucb import UCB


def _turns(selector: SeedSelector, count: int) -> None:
    for epoch in range(count):
        decision = selector.decide("fc1", [1, 2], SelectionContext(current_epoch=epoch))
        delta = PerformanceDelta(reward=0.1 * decision.seed_idx)
        tracker = selector.performance_tracker
        tracker.update_metrics_now("fc1", decision.seed_idx, delta, decision=decision)


def _pending(tracker: PerformanceTracker, seed_idx: int = 0) -> int:
    layer = tracker.layer("fc1")
    assert layer is not None
    return layer.seeds[seed_idx].pending


def test_what_a_dead_run_decided_is_waited_for_a_while() -> None:
    store = MemoryStore()
    dead = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run="dead"))
    dead.decide("fc1", [0], SelectionContext())
    tracker = PerformanceTracker(store=store, run="alive")
    selector = SeedSelector(UCB(), tracker=tracker)
    _turns(selector, EXPIRY - 1)
    assert _pending(tracker) == 1
    _turns(selector, 1)
    assert _pending(tracker) == 0
    again = PerformanceTracker(store=store, run="later")
    assert _pending(again) == 0


def test_its_outcome_counts_all_the_same_if_it_comes() -> None:
    store = MemoryStore()
    slow_tracker = PerformanceTracker(store=store, run="slow")
    decision = SeedSelector(UCB(), tracker=slow_tracker).decide("fc1", [0], SelectionContext())
    tracker = PerformanceTracker(store=store, run="fast")
    _turns(SeedSelector(UCB(), tracker=tracker), EXPIRY + 5)
    slow_tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.7), decision=decision)
    tracker.refresh()
    assert tracker.get_layer_metrics("fc1")[0].rewards == [0.7]


def test_a_run_waits_for_its_own_decisions_as_long_as_it_takes() -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store, run="one")
    selector = SeedSelector(UCB(), tracker=tracker)
    selector.decide("fc1", [0], SelectionContext())
    _turns(selector, EXPIRY + 5)
    assert _pending(tracker) == 1
    resumed = PerformanceTracker(store=store, run="one")
    assert _pending(resumed) == 1


def test_trainers_that_decide_before_they_hear_spread_by_ucb() -> None:
    store = MemoryStore()
    first = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run="first"))
    for seed_idx in range(4):
        for sign in (-1, 1):
            delta = PerformanceDelta(reward=0.03 * seed_idx + 0.2 * sign)
            first.performance_tracker.update_metrics_now("fc1", seed_idx, delta)
    taken = []
    for run in range(6):
        trainer = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run=f"run-{run}"))
        taken.append(trainer.decide("fc1", range(4), SelectionContext()).seed_idx)
        trainer.performance_tracker.flush()
    assert taken[0] == 3
    assert len(set(taken)) >= 3


@pytest.mark.parametrize("store", [MemoryStore, None])
def test_what_nobody_ever_answers_is_forgotten_in_the_end(
    store: Callable[[], MemoryStore] | None,
) -> None:
    """A strategy that learns keeps decisions for their outcomes, but not for ever."""
    tracker = PerformanceTracker(store=store() if store else None, run="r")
    selector, made = SeedSelector(STRATEGIES.create("auto"), tracker=tracker), []
    for epoch in range(3 * OPEN + LATE):
        made.append(selector.decide("fc1", [0, 1], SelectionContext(epoch)))
        selector.commit("fc1", made[-1].seed_idx)
        selector.free("fc1", made[-1].seed_idx, epoch)
        history = tracker._history
        assert len(history.open) <= 2 * OPEN + LATE
    assert len(history.open) == 2 * OPEN + LATE
    assert made[-1].decision_id in history.open
    if store:
        again = PerformanceTracker(store=tracker.events.journal, run="r")
        SeedSelector(STRATEGIES.create("auto"), tracker=again)
        assert list(again._history.open) == list(history.open)
        assert again._history.late == history.late
