"""What the tracker takes in, refuses, keeps and shares."""

import asyncio
import tracemalloc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from typing_extensions import override

from esper.contracts.errors import ConfigError, MeasurementError, SelectionError, StoreError
from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import Decision, SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import MetricsStore
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.strategies.ucb import UCB

GAIN = PerformanceDelta(accuracy_delta=0.012, loss_delta=0.031, latency_ms=0.4, memory_mb=1.5)


def decide(tracker: PerformanceTracker, layer: str = "fc1", seed: int = 0) -> Decision:
    return SeedSelector(UCB(), tracker=tracker).decide(layer, [seed], SelectionContext())


def test_a_snapshot_has_the_fields_of_the_document() -> None:
    tracker = PerformanceTracker()
    tracker.record_selection("fc1", 1)
    tracker.update_metrics_now("fc1", 1, GAIN, kernel_id="k7")
    tracker.record_end("fc1", 1, kept=True)
    (metrics,) = tracker.get_layer_metrics("fc1").values()
    assert metrics == SeedPerformanceMetrics(
        seed_idx=1,
        layer_name="fc1",
        kernel_id="k7",
        accuracy_improvements=[0.012],
        loss_reductions=[0.031],
        execution_latencies=[0.4],
        memory_usage=[1.5],
        total_activations=1,
        successful_grafts=1,
        ucb_score=0.0,
        thompson_score=0.5,
        performance_score=0.0,
        rewards=[0.0215],
        total_outcomes=1,
        recent_reward=0.0215,
    )
    metrics.rewards.append(1.0)
    assert tracker.get_layer_metrics("fc1")[1].rewards == [0.0215]
    assert tracker.get_layer_metrics("fc2") == {}


def test_a_window_forgets_the_oldest_and_what_was_not_measured_is_not_in_it() -> None:
    tracker = PerformanceTracker(window_size=3)
    for number in range(5):
        accuracy = None if number == 3 else 0.1 * number
        tracker.update_metrics_now("fc1", 0, PerformanceDelta(accuracy, float(number)))
    metrics = tracker.get_layer_metrics("fc1")[0]
    assert metrics.loss_reductions == [2.0, 3.0, 4.0]
    assert metrics.accuracy_improvements == [0.2, 0.4]
    assert metrics.rewards == [1.1, 3.0, 2.2]
    assert metrics.execution_latencies == []
    assert (metrics.count, metrics.total_outcomes) == (3, 5)


def test_scores_of_a_snapshot_are_those_of_the_strategies() -> None:
    tracker = PerformanceTracker()
    for reward in (1.0, 3.0):
        tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=reward))
    for reward in (5.0, 7.0):
        tracker.update_metrics_now("fc1", 1, PerformanceDelta(reward=reward))
    tracker.bind("fc1", 2, "glu")
    metrics = tracker.get_layer_metrics("fc1")
    # Units: centre 4, scale sqrt((4 + 20/3) / 3) = 1.8856; bonus sqrt(2 ln 4 / 2) = 1.1774.
    assert metrics[0].ucb_score == pytest.approx(-2 / 1.8856 + 1.1774, abs=1e-4)
    assert metrics[1].ucb_score == pytest.approx(2 / 1.8856 + 1.1774, abs=1e-4)
    assert metrics[2].ucb_score == inf
    # Phi(2 / 1.8856) = 0.8556: Beta(1 + 1.7112, 1 + 0.2888), mean 2.7112 / 4.
    assert metrics[1].thompson_score == pytest.approx(0.6778, abs=1e-4)
    # Recent means: (0.9 * 5 + 7) / 1.9 = 6.0526.
    assert metrics[1].performance_score == pytest.approx((6.0526 - 4) / 1.8856, abs=1e-4)
    assert metrics[2].performance_score == 0.0


@pytest.mark.parametrize("bad", [nan, inf, -inf, 1e300, "0.1"])
@pytest.mark.parametrize(
    "field", ["accuracy_delta", "loss_delta", "latency_ms", "memory_mb", "reward", "reward_stderr"]
)
def test_bad_measurements_are_refused_before_anything_changes(field: str, bad: Any) -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store)
    tracker.update_metrics_now("fc1", 0, GAIN)
    before = tracker.get_layer_metrics("fc1"), len(list(store.read()))
    with pytest.raises(MeasurementError, match=field):
        tracker.update_metrics_now("fc1", 0, replace(GAIN, **{field: bad}))
    assert (tracker.get_layer_metrics("fc1"), len(list(store.read()))) == before


def test_nothing_measured_is_no_outcome() -> None:
    with pytest.raises(MeasurementError, match="needs a measurement"):
        PerformanceTracker().update_metrics_now("fc1", 0, PerformanceDelta(latency_ms=1.0))


def test_a_failure_is_an_outcome_without_gain() -> None:
    tracker = PerformanceTracker()
    decision = decide(tracker)
    tracker.record_failure("fc1", 0, "out of memory", decision=decision)
    tracker.record_failure("fc1", 0, "out of memory", decision=decision)
    metrics = tracker.get_layer_metrics("fc1")[0]
    assert (metrics.failed_attempts, metrics.rewards, metrics.total_outcomes) == (1, [0.0], 1)
    assert metrics.accuracy_improvements == []


def test_timing_is_no_outcome() -> None:
    tracker = PerformanceTracker()
    tracker.record_timing("fc1", 0, latency_ms=0.5, decision=decide(tracker))
    metrics = tracker.get_layer_metrics("fc1")[0]
    assert (metrics.execution_latencies, metrics.memory_usage) == ([0.5], [])
    assert metrics.total_outcomes == 0
    with pytest.raises(MeasurementError, match="memory_mb"):
        tracker.record_timing("fc1", 0, memory_mb=nan)


def test_an_outcome_is_for_the_decision_that_it_came_from() -> None:
    tracker = PerformanceTracker()
    decision = decide(tracker)
    record: list[Callable[..., object]] = [
        lambda layer, seed, made: tracker.update_metrics_now(layer, seed, GAIN, decision=made),
        lambda layer, seed, made: tracker.record_failure(layer, seed, "no", decision=made),
        lambda layer, seed, made: tracker.record_end(layer, seed, True, decision=made),
        lambda layer, seed, made: tracker.record_timing(layer, seed, decision=made),
    ]
    before = tracker.get_layer_metrics("fc1")
    for call in record:
        with pytest.raises(SelectionError, match="chose seed 0 of layer 'fc1'"):
            call("fc2", 0, decision)
        with pytest.raises(SelectionError, match="for seed 1"):
            call("fc1", 1, decision)
        for never in ("local/fc1/1", "elsewhere/fc1/0", "local/fc2/0", "nonsense", ""):
            with pytest.raises(SelectionError, match="was never made"):
                call("fc1", 0, replace(decision, decision_id=never))
    assert tracker.get_layer_metrics("fc1") == before
    assert tracker.layer_names == ["fc1"]


def test_an_outcome_that_comes_twice_counts_once() -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store)
    decision = decide(tracker)
    for _ in range(3):
        tracker.update_metrics_now("fc1", 0, GAIN, decision=decision)
    assert tracker.get_layer_metrics("fc1")[0].total_outcomes == 1
    later = PerformanceTracker(store=store)
    later.update_metrics_now("fc1", 0, GAIN, decision=decision)
    assert later.get_layer_metrics("fc1")[0].total_outcomes == 1


def test_an_outcome_may_come_after_a_restart() -> None:
    store = MemoryStore()
    decision = decide(PerformanceTracker(store=store))
    later = PerformanceTracker(store=store)
    later.update_metrics_now("fc1", 0, GAIN, decision=decision)
    assert later.get_layer_metrics("fc1")[0].total_outcomes == 1


@pytest.mark.parametrize(("layer", "seed"), [("fc1", -1), ("fc1", "0"), (3, 0), ("fc1", None)])
def test_a_seed_is_named_by_a_string_and_a_number(layer: Any, seed: Any) -> None:
    tracker = PerformanceTracker()
    with pytest.raises(SelectionError, match="numbered from 0"):
        tracker.update_metrics_now(layer, seed, GAIN)
    assert tracker.layer_names == []


@pytest.mark.parametrize(
    "settings",
    [
        {"window_size": 0},
        {"window_size": 2.5},
        {"decay_factor": 0},
        {"decay_factor": 1.1},
        {"decay_factor": nan},
        {"decay_factor": "0.9"},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PerformanceTracker(**settings)


def test_client_or_store_not_both() -> None:
    with pytest.raises(ConfigError, match="not both"):
        PerformanceTracker(object(), store=MemoryStore())  # type: ignore[arg-type]


def test_a_second_run_starts_from_what_the_first_learnt() -> None:
    store = MemoryStore()

    async def first_run() -> PerformanceTracker:
        tracker = PerformanceTracker(store=store, run="first")
        selector = SeedSelector(UCB(), tracker=tracker)
        for epoch in range(40):
            context = SelectionContext(current_epoch=epoch, blueprints={0: "glu", 1: "gate"})
            seed_idx, _ = await selector.select_seed("fc1", [0, 1, 2], context)
            delta = PerformanceDelta(reward=0.1 * seed_idx, latency_ms=0.1)
            await tracker.update_metrics("fc1", seed_idx, delta, kernel_id=f"k{epoch}")
            tracker.record_end("fc1", seed_idx, kept=epoch % 2 == 0)
            tracker.record_timing("fc1", seed_idx, memory_mb=3.0)
        tracker.record_failure("fc1", 2, "it broke")
        return tracker

    first = asyncio.run(first_run())
    second = PerformanceTracker(store=store, run="second")
    assert second.get_layer_metrics("fc1") == first.get_layer_metrics("fc1")


def test_scopes_do_not_mix() -> None:
    store = MemoryStore()
    PerformanceTracker(store=store, scope="letter", run="a").update_metrics_now("fc1", 0, GAIN)
    assert PerformanceTracker(store=store, scope="digits").get_layer_metrics("fc1") == {}
    assert PerformanceTracker(store=store, scope="letter").get_layer_metrics("fc1")


def test_refresh_takes_in_what_others_learnt_and_not_one_s_own() -> None:
    store = MemoryStore()
    one, two = (PerformanceTracker(store=store) for _ in range(2))
    one.update_metrics_now("fc1", 0, GAIN)
    two.update_metrics_now("fc1", 0, GAIN)
    assert (one.refresh(), two.refresh()) == (1, 1)
    assert (one.refresh(), two.refresh()) == (0, 0)
    assert one.get_layer_metrics("fc1") == two.get_layer_metrics("fc1")
    assert one.get_layer_metrics("fc1")[0].total_outcomes == 2
    assert PerformanceTracker().refresh() == 0


def test_others_outcomes_do_not_end_a_reservation() -> None:
    store = MemoryStore()
    one, two = (PerformanceTracker(store=store) for _ in range(2))
    selector = SeedSelector(UCB(), tracker=one)
    selector.decide("fc1", [0, 1], SelectionContext())
    selector.decide("fc1", [0, 1], SelectionContext())
    for seed in (0, 1):
        two.update_metrics_now("fc1", seed, GAIN)
    one.refresh()
    with pytest.raises(SelectionError, match="seed 0 is reserved; seed 1 is reserved"):
        selector.decide("fc1", [0, 1], SelectionContext())


def test_a_run_repeated_under_one_name_writes_the_same_events() -> None:
    def events() -> list[Event]:
        store = MemoryStore()
        tracker = PerformanceTracker(store=store, run="r")
        selector = SeedSelector(UCB(), tracker=tracker, seed=4)
        for epoch in range(10):
            context = SelectionContext(current_epoch=epoch)
            seed_idx, _ = selector.select_seed_now("fc1", [0, 1], context)
            tracker.update_metrics_now("fc1", seed_idx, PerformanceDelta(reward=0.1 * seed_idx))
        return [event for _, event in store.read()]

    assert events() == events()
    assert [event.op_id for event in events()[:2]] == ["r//0", "r/fc1/0//answer"]


def test_a_run_opened_again_goes_on_where_it_stopped() -> None:
    store = MemoryStore()
    for opened in range(1, 4):
        tracker = PerformanceTracker(store=store, run="r")
        tracker.update_metrics_now("fc1", 0, GAIN)
        assert tracker.position == opened
    assert PerformanceTracker(store=store).get_layer_metrics("fc1")[0].total_outcomes == 3


def test_rewind_does_the_end_of_a_run_anew_and_keeps_one_copy() -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store, run="r")
    tracker.update_metrics_now("fc1", 0, GAIN)
    checkpoint, known = tracker.position, tracker.get_layer_metrics("fc1")
    tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.5))
    after = tracker.get_layer_metrics("fc1")

    resumed = PerformanceTracker(store=store, run="r")
    assert resumed.get_layer_metrics("fc1") == after
    resumed.rewind(checkpoint)
    assert resumed.get_layer_metrics("fc1") == known
    resumed.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.5))
    assert resumed.get_layer_metrics("fc1") == after
    assert len(list(store.read())) == 2


class Failing(MetricsStore):
    """A store whose disk went away."""

    durable = False

    @override
    def append(self, events: Sequence[Event]) -> None:
        raise StoreError("the disk is gone")

    @override
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        if after:
            raise StoreError("the disk is gone")
        return iter([("1", Event("x", "lifecycle"))])

    @override
    def close(self) -> None:
        pass


def test_a_store_that_fails_stops_neither_choosing_nor_learning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = Journal(Failing())
    tracker = PerformanceTracker(store=journal)
    selector = SeedSelector(UCB(), tracker=tracker)
    for _ in range(6):
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1], SelectionContext())
        tracker.update_metrics_now("fc1", seed_idx, GAIN)
    assert sum(seed.total_outcomes for seed in tracker.get_layer_metrics("fc1").values()) == 6
    assert journal.error is not None
    assert tracker.refresh() == 0
    assert "the store fails" in caplog.text


def test_a_damaged_event_is_named_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.append([Event("op-7", "outcome", data={"layer": "fc1"})])
    PerformanceTracker(store=store)
    assert "event 'op-7' of kind 'outcome' cannot be read" in caplog.text


def test_updates_without_a_store_leave_nothing_behind() -> None:
    tracker = PerformanceTracker()
    selector = SeedSelector(UCB(), tracker=tracker)

    def work(times: int) -> None:
        for _ in range(times):
            seed_idx, _ = selector.select_seed_now("fc1", [0, 1], SelectionContext())
            selector.release("fc1", seed_idx)
            selector.select_seed_now("fc1", [0, 1], SelectionContext())
            tracker.update_metrics_now("fc1", 0, GAIN)
            tracker.update_metrics_now("fc1", 1, GAIN)

    work(300)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work(1000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4000


def test_a_seed_with_full_windows_takes_less_than_two_kilobytes() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracker = PerformanceTracker()
    for _ in range(25):
        for layer in ("fc1", "fc2", "fc3", "fc4"):
            for seed in range(8):
                tracker.update_metrics_now(layer, seed, GAIN, kernel_id="k")
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / 32 < 2000
