"""The one writer of a run's events: numbers, names, and what others wrote."""

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event, event_data, event_from
from esper.contracts.performance import PerformanceDelta
from esper.records.event_writer import EventWriter
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.stores.memory import MemoryStore


def test_numbered_events_go_on_where_the_history_ends() -> None:
    store = MemoryStore()
    first = EventWriter(store, scope="s", run="r")
    for _ in range(3):
        first.write("failure", {})
    first.flush()
    again = EventWriter(store, scope="s", run="r")
    assert len(list(again.read_all())) == again.written == 3
    assert len(list(again.read_all(2))) == again.written == 2


def test_only_others_events_are_new() -> None:
    store = MemoryStore()
    mine, other = (EventWriter(store, scope="s", run=run) for run in ("a", "b"))
    elsewhere = EventWriter(store, scope="t", run="a")
    for writer in (mine, other, elsewhere):
        writer.write("failure", {"by": writer.name})
        writer.flush()
    assert [event.data["by"] for event in mine.fetch_new()] == ["s/b"]
    assert not mine.fetch_new()


def test_an_event_about_something_is_kept_once() -> None:
    writer = EventWriter(MemoryStore(), run="r")
    for _ in range(2):
        writer.write_about("epoch", "3", {"epoch": 3})
        writer.write_once("ab_test", {"test": "t"})
    assert [event.kind for event in writer.read_run()] == ["epoch", "ab_test"]


def test_without_a_store_nothing_is_kept() -> None:
    writer = EventWriter(None)
    writer.write("failure", {})
    writer.write_about("epoch", "3", {})
    assert (writer.written, writer.read_run(), list(writer.read_all())) == (0, [], [])


def test_an_end_of_before_the_first_schema_counts_once() -> None:
    place = {"decision": "", "layer": "fc1", "seed": 0, "blueprint": ""}
    store = MemoryStore()
    store.append(
        [
            Event("r/tracker/0", "verdict", run="r", data=place | {"kept": True}, schema=0),
            Event(
                "r/graft/k", "graft", run="r", data={"layer_name": "fc1", "kept": True}, schema=0
            ),
            Event("r/tracker/1", "graft", run="r", data=place | {"kept": True}),
        ]
    )
    metrics = PerformanceTracker(store=store, run="r").get_layer_metrics("fc1")
    assert metrics[0].successful_grafts == 2


def test_an_event_of_a_newer_schema_is_passed_over_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, data = MemoryStore(), {"decision": "", "layer": "fc1", "seed": 0, "blueprint": ""}
    tracker = PerformanceTracker(store=store)
    store.append(
        [Event(f"r//{n}", "failure", data=data, schema=s) for n, s in enumerate((1, 2, 1))]
    )
    assert tracker.refresh() == 3
    assert "has schema 2, this version reads up to 1; upgrade" in caplog.text
    caplog.clear()
    assert tracker.refresh() == 0
    assert PerformanceTracker(store=store).get_layer_metrics("fc1")[0].total_outcomes == 2
    assert tracker.get_layer_metrics("fc1")[0].total_outcomes == 2


def test_an_event_carries_its_schema() -> None:
    assert event_data(Event("a", "epoch"))["schema"] == 1
    assert event_from({"op_id": "a", "kind": "epoch"}).schema == 0


def test_a_reward_is_computed_once_and_less_the_rent() -> None:
    tracker = PerformanceTracker(store=MemoryStore(), run="r")
    delta = PerformanceDelta(reward=0.5, reward_stderr=0.1, rent=0.125)
    assert tracker.update_metrics_now("fc1", 0, delta) == 0.375
    [outcome] = [event.data for event in tracker.events.read_run()]
    assert (outcome["reward"], outcome["rent"]) == (0.375, 0.125)
    assert tracker.get_layer_metrics("fc1")[0].rewards == [0.375]


def test_a_tracker_names_what_is_no_store() -> None:
    with pytest.raises(ConfigError, match="store is 5; give a URL"):
        PerformanceTracker(store=5)  # type: ignore[arg-type]  # that is the mistake


def test_a_tracker_takes_the_url_of_a_store(tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    PerformanceTracker(store=url, run="r").update_metrics_now(
        "fc1", 0, PerformanceDelta(reward=1.0)
    )
    assert PerformanceTracker(store=url).get_layer_metrics("fc1")[0].rewards == [1.0]
