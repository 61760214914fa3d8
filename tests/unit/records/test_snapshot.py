"""Snapshots: opening a history goes on from one, and it is the same history, bit for bit."""

import json
from pathlib import Path
from random import Random  # noqa: TID251 (the script of a run, not a choice)
from typing import Any

import pytest

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records import snapshot
from esper.records.state import history_data
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES


def play(store: MemoryStore | SqliteStore, run: str, strategy: str, times: int) -> None:
    """A run in three layers, whose outcomes come late, out of order or never."""
    tracker = PerformanceTracker(store=store, scope="s", run=run)
    selector, script = SeedSelector(STRATEGIES.create(strategy), tracker=tracker), Random(run)
    waiting = []
    for epoch in range(times):
        layer = script.choice(["fc1", "fc2", "fc3"])
        decision = selector.decide(layer, [0, 1, 2], SelectionContext(epoch))
        selector.commit(layer, decision.seed_idx)
        selector.free(layer, decision.seed_idx, 0)
        waiting.append(decision)
        if script.random() < 0.8:
            one = waiting.pop(script.randrange(len(waiting)))
            delta = PerformanceDelta(reward=script.gauss(0.01, 0.02), latency_ms=0.5)
            tracker.update_metrics_now(one.layer_name, one.seed_idx, delta, decision=one)
            if script.random() < 0.2:
                tracker.record_end(one.layer_name, one.seed_idx, True, decision=one)
    tracker.flush()


def known(store: MemoryStore | SqliteStore, strategy: str) -> dict[str, Any]:
    tracker = PerformanceTracker(store=store, scope="s", run="reader")
    SeedSelector(STRATEGIES.create(strategy), tracker=tracker)
    found = history_data(tracker._history)
    return {**found, "reads": list(tracker.events.reads), "cursor": tracker.events.place["cursor"]}


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_a_snapshot_and_what_follows_are_the_whole_history(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "EVERY", 40)
    store, plain = SqliteStore(tmp_path / "h.db"), MemoryStore()  # which keeps no snapshots
    for number, times in enumerate((60, 10, 25, 3)):
        for place in (store, plain):
            play(place, f"run-{number}", strategy, times)
        found = [json.dumps({**known(place, strategy), "cursor": ""}) for place in (store, plain)]
        assert found[0] == found[1]
    store.close()


def test_opening_reads_only_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "EVERY", 40)
    starts: list[str] = []
    with SqliteStore(tmp_path / "h.db") as store:
        play(store, "first", "ucb", 60)
        known(store, "ucb")
        read = SqliteStore.read

        def noted(self: SqliteStore, after: str = "", **wanted: Any) -> Any:
            starts.append(after)
            return read(self, after, **wanted)

        monkeypatch.setattr(SqliteStore, "read", noted)
        known(store, "ucb")
        assert "" not in starts
        known(store, "auto")  # another strategy knows other things
        assert "" in starts


@pytest.mark.parametrize("damage", ["{", "[]", '{"digest": ""}', "changed", ""])
def test_a_damaged_snapshot_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(snapshot, "EVERY", 40)
    with SqliteStore(tmp_path / "h.db") as store:
        play(store, "first", "ucb", 60)
        whole = known(store, "ucb")
        load = SqliteStore.load_snapshot

        def damaged(self: SqliteStore, name: str) -> str | None:
            text = load(self, name)
            return (
                text.replace('"outcomes": 1', '"outcomes": 7')
                if damage == "changed" and text
                else damage
            )

        monkeypatch.setattr(SqliteStore, "load_snapshot", damaged)
        assert known(store, "ucb") == whole
