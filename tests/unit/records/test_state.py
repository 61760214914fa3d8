"""State of a tracker without a store, saved and restored; the laws test every strategy."""

import json
from random import Random  # noqa: TID251 (seeded)
from typing import Any

import pytest

from esper.contracts.config import AbTest
from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy


def a_selector(
    chooser: SelectionStrategy | Assignment | None = None, **settings: Any
) -> SeedSelector:
    tracker = PerformanceTracker(**settings)
    return SeedSelector(chooser or STRATEGIES.create("auto"), tracker=tracker, seed=3)


def work(selector: SeedSelector, random: Random, choices: int) -> list[Decision]:
    made = []
    for epoch in range(choices):
        decision = selector.decide("fc1", [0, 1, 2], SelectionContext(epoch, layer_type="Linear"))
        made.append(decision)
        delta = PerformanceDelta(
            accuracy_delta=random.random(), latency_ms=0.5, reward=random.gauss(0, 1)
        )
        selector.performance_tracker.update_metrics_now(
            "fc1", decision.seed_idx, delta, decision=decision, kernel_id=f"kernel {epoch}"
        )
    return made


def moved(selector: SeedSelector, to: SeedSelector) -> None:
    """Let ``to`` take up what the selector and its tracker know, through JSON."""
    for one, other in (
        (selector.performance_tracker, to.performance_tracker),
        (selector, to),
    ):
        other.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))


def test_a_snapshot_is_the_same_and_so_is_the_state() -> None:
    one, two = a_selector(window_size=4), a_selector(window_size=4)
    work(one, Random(1), 20)
    tracker = one.performance_tracker
    tracker.record_failure("fc2", 1, "it broke")
    tracker.record_end("fc2", 1, True)
    moved(one, two)
    assert two.performance_tracker.state_dict() == tracker.state_dict()
    for layer in ("fc1", "fc2"):
        snapshot = two.performance_tracker.get_layer_metrics(layer)
        assert snapshot == tracker.get_layer_metrics(layer)
    assert two.performance_tracker.layer_names == ["fc1", "fc2"]


def test_records_of_former_blueprints_and_bindings_are_kept() -> None:
    one, two = a_selector(), a_selector()
    for selector in (one, two):
        selector.performance_tracker.bind("fc1", 0, "glu")
    work(one, Random(1), 9)
    one.performance_tracker.bind("fc1", 0, "gate")
    work(one, Random(2), 6)
    moved(one, two)
    assert two.performance_tracker.get_layer_metrics("fc1")[0].blueprint == "gate"
    for selector in (one, two):
        selector.performance_tracker.bind("fc1", 0, "glu")
    assert work(one, Random(3), 20) == work(two, Random(3), 20)


def test_an_open_decision_may_be_answered_afterwards_and_once() -> None:
    one, two = a_selector(), a_selector()
    work(one, Random(1), 9)
    late = one.decide("fc1", [0, 1, 2], SelectionContext(20))
    moved(one, two)
    for _ in range(2):
        two.performance_tracker.update_metrics_now(
            "fc1", late.seed_idx, PerformanceDelta(reward=1.0), decision=late
        )
    metrics = two.performance_tracker.get_layer_metrics("fc1")
    assert sum(seed.total_outcomes for seed in metrics.values()) == 10


def test_an_ab_test_goes_on_as_it_would_have() -> None:
    arms = {"a": {"strategy": "ucb"}, "b": {"strategy": "sliding_thompson"}}
    test = AbTest.model_validate({"salt": "t", "arms": arms | {"c": {"strategy": "linucb"}}})
    one, two = a_selector(Assignment.of(test)), a_selector(Assignment.of(test))
    work(one, Random(1), 30)
    moved(one, two)
    assert work(one, Random(2), 30) == work(two, Random(2), 30)
    other = AbTest.model_validate({"salt": "t", "arms": arms})
    with pytest.raises(ConfigError, match="another A/B test"):
        moved(one, a_selector(Assignment.of(other)))


def test_with_a_store_the_log_is_the_state() -> None:
    tracker = PerformanceTracker(store=MemoryStore())
    with pytest.raises(ConfigError, match="without a store"):
        tracker.state_dict()
    with pytest.raises(ConfigError, match="without a store"):
        tracker.load_state_dict(PerformanceTracker().state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: a_selector(window_size=3), "the state has window_size 20, this tracker 3"),
        (lambda: a_selector(STRATEGIES.create("ucb")), "learns more than the records"),
        (lambda: a_selector(STRATEGIES.create("linucb")), "the state is of model None"),
    ],
    ids=["window", "learns nothing", "learns otherwise"],
)
def test_a_state_of_something_else_is_refused(other: Any, message: str) -> None:
    one, two = a_selector(), other()
    work(one, Random(1), 9)
    work(two, Random(1), 5)
    before = json.dumps(two.performance_tracker.state_dict())
    with pytest.raises(ConfigError, match=message):
        moved(one, two)
    assert json.dumps(two.performance_tracker.state_dict()) == before


@pytest.mark.parametrize("key", ["layers", "open", "writers", "window_size"])
def test_a_damaged_state_is_refused_and_touches_nothing(key: str) -> None:
    one, two = a_selector(), a_selector()
    work(one, Random(1), 9)
    state = one.performance_tracker.state_dict()
    for damaged in ({k: v for k, v in state.items() if k != key}, state | {key: 5.5}):
        with pytest.raises(ConfigError):
            two.performance_tracker.load_state_dict(damaged)
    assert two.performance_tracker.layer_names == []
