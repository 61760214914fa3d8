"""Laws of stores; subclass ``StoreLaws`` with a fixture ``make`` that opens one."""
# ruff: noqa: D102 (the name of a law is what it says)

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import sin
from typing import Any

import pytest

from esper.contracts.errors import ConfigError, ConflictError, StoreError
from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.fold import KINDS, take
from esper.records.history import History
from esper.records.state import history_data
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import MetricsStore
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.testing.writer_laws import Make, WriterLaws, event, numbers

ODD_DATA: dict[str, Any] = {
    "zero": 0,
    "int": 9007199254740993,
    "huge": 2**100,
    "float": 0.1 + 0.2,
    "tiny": 5e-324,
    "whole": 1.0,
    "negative": -0.0,
    "true": True,
    "null": None,
    "text": 'Größe "seed" 層 🌱\n\0\u2028\ud800',
    "": {"nested": [[], {}, [1, [2.5, ["three"]]]]},
}


def _play(store: MemoryStore) -> MemoryStore:
    """A run of 30 choices whose outcomes have many digits."""
    tracker = PerformanceTracker(store=store, scope="s", run="r")
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
    for epoch in range(30):
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
        delta = PerformanceDelta(reward=sin(epoch), latency_ms=1 / (epoch + 3))
        tracker.update_metrics_now("fc1", seed_idx, delta)
    tracker.flush()
    return store


class StoreLaws(WriterLaws):
    """Laws of every store.

    The fixture ``make`` gives a callable that opens *the same place* each time, which is empty at
    first and belongs to this test alone; the test closes the stores that it opens.
    """

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("override the fixture 'make'")

    def spoil(self, store: MetricsStore) -> bool:
        """Put an entry into scope ``s`` that is no event; false where that cannot be done."""
        del store
        return False

    @pytest.fixture
    def store(self, make: Make) -> Iterator[MetricsStore]:
        with make() as opened:
            yield opened

    def test_a_new_place_is_empty(self, store: MetricsStore) -> None:
        assert list(store.read()) == []

    def test_events_come_back_equal_and_in_order(self, store: MetricsStore) -> None:
        written = [Event(f"op-{i}", "k", "s", "r", {"i": i} | ODD_DATA) for i in range(30)]
        for one in written[:10]:
            store.append([one])
        store.append(written[10:])
        read = [found for _, found in store.read()]
        assert read == written
        for sent, found in zip(written, read, strict=True):
            assert repr(dict(found.data)) == repr(dict(sent.data))  # 1 is not 1.0 nor True

    def test_names_may_be_any_text(self, store: MetricsStore) -> None:
        odd = Event("id: 層 🌱 \0 '", "kind é", "scope {x}", "run\n", {})
        store.append([odd])
        assert [found for _, found in store.read(scope=odd.scope, run=odd.run)] == [odd]
        assert [found for _, found in store.read(kinds=[odd.kind])] == [odd]

    def test_empty_names_and_no_events_are_fine(self, store: MetricsStore) -> None:
        store.append([])
        store.append([Event("only an id", "")])
        assert [found for _, found in store.read(scope="", run="", kinds=[""])] == [
            Event("only an id", "")
        ]

    def test_reads_go_on_from_the_middle(self, store: MetricsStore) -> None:
        store.append([event(i) for i in range(10)])
        positions = [position for position, _ in store.read()]
        assert len(set(positions)) == 10
        for index, position in enumerate(positions):
            assert numbers(store.read(position)) == list(range(index + 1, 10))
        store.append([event(10)])
        assert numbers(store.read(positions[-1])) == [10]

    def test_long_histories_are_read_whole(self, store: MetricsStore) -> None:
        store.append([event(i, scope=str(i % 2)) for i in range(2500)])
        assert numbers(store.read()) == list(range(2500))
        assert numbers(store.read(scope="1")) == list(range(1, 2500, 2))
        middle = next(position for position, found in store.read() if found.op_id == "op-1199")
        assert numbers(store.read(middle, scope="0")) == list(range(1200, 2500, 2))

    def test_reading_ends_though_the_reader_appends(self, store: MetricsStore) -> None:
        store.append([event(i) for i in range(5)])
        for _, found in store.read():
            store.append([event(found.data["number"] + 5)])
        assert numbers(store.read()) == list(range(10))

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
            ({"scope": "b"}, [1, 3, 5, 7]),
            ({"run": "y"}, [2, 3, 6, 7]),
            ({"kinds": ["late"]}, [4, 5, 6, 7]),
            ({"kinds": {"late", "early"}}, [0, 1, 2, 3, 4, 5, 6, 7]),
            ({"kinds": []}, []),
            ({"scope": "b", "run": "y", "kinds": ("late",)}, [7]),
            ({"scope": "B"}, []),
            ({"scope": ""}, []),
        ],
    )
    def test_filters(
        self, store: MetricsStore, wanted: dict[str, Any], expected: Sequence[int]
    ) -> None:
        store.append(
            [
                event(i, scope="ab"[i % 2], run="xy"[i // 2 % 2], kind=["early", "late"][i // 4])
                for i in range(8)
            ]
        )
        pairs = list(store.read(**wanted))
        assert numbers(iter(pairs)) == list(expected)
        if pairs:
            assert numbers(store.read(pairs[0][0], **wanted)) == list(expected)[1:]

    def test_kinds_is_not_one_string(self, store: MetricsStore) -> None:
        with pytest.raises(ConfigError, match=r"\['outcome'\]"):
            store.read(kinds="outcome")

    def test_an_operation_counts_once(self, store: MetricsStore) -> None:
        first = event(1)
        store.append([first])
        store.append([first])
        store.append([event(0), event(1), event(2), event(2)])
        assert numbers(store.read()) == [1, 0, 2]
        assert next(store.read())[1] == first

    @pytest.mark.parametrize("name", ["kind", "scope", "data"])
    def test_other_content_under_an_id_is_an_error_and_the_first_holds(
        self, store: MetricsStore, name: str
    ) -> None:
        first = event(1)
        store.append([first])
        changes: dict[str, Any] = {name: {"number": 2} if name == "data" else "other"}
        other = replace(first, **changes)
        with pytest.raises(ConflictError, match="'op-1'; what was told first holds") as caught:
            store.append([event(0), other, event(2)])
        assert caught.value.op_ids == {"op-1"}
        assert [found for _, found in store.read()] == [first]
        store.append([event(0), first, event(2)])
        assert numbers(store.read()) == [1, 0, 2]

    def test_an_entry_that_is_no_event_is_passed_over(self, store: MetricsStore) -> None:
        store.append([event(0)])
        spoilt = self.spoil(store)
        store.append([event(1)])
        for _ in range(2):
            assert numbers(store.read()) == numbers(store.read(scope="s")) == [0, 1]
        assert len(store.quarantined) == spoilt
        assert numbers(store.read(next(iter(store.read()))[0])) == [1]

    def test_histories_are_the_same_from_every_store(self, store: MetricsStore) -> None:
        kept = MemoryStore()
        played = [event for _, event in _play(kept).read()]
        for start in range(0, len(played), 7):
            store.append(played[start : start + 7])
        found = [History(20, 0.9), History(20, 0.9)]
        for history, place in zip(found, (store, kept), strict=True):
            for _, one in place.read(scope="s", kinds=KINDS):
                take(history, one)
        first, second = (json.dumps(history_data(history)) for history in found)
        assert first == second
        assert '"outcomes": 0' not in first

    @pytest.mark.parametrize(
        "bad",
        [
            {"x": float("nan")},
            {"x": [1.0, float("inf")]},
            {"x": (1, 2)},
            {"x": {1: 2}},
            {"x": {"y": object()}},
            {"x": b"bytes"},
            {"x": {"a set"}},
        ],
        ids=["nan", "inf", "tuple", "number", "object", "bytes", "set"],
    )
    def test_a_batch_with_a_bad_event_is_refused_whole(
        self, store: MetricsStore, bad: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=r"event 'bad' of kind 'k': data\.x"):
            store.append([event(1), Event("bad", "k", data=bad), event(2)])
        assert list(store.read()) == []
        store.append([event(1)])
        assert numbers(store.read()) == [1]

    def test_bad_names_are_refused(self, store: MetricsStore) -> None:
        for bad, said in [
            (Event("", "k"), "empty op_id"),
            (Event("x", "k", scope="\ud800"), "not valid Unicode"),
            (Event("x", 3), "kind is 3"),  # type: ignore[arg-type]
        ]:
            with pytest.raises(ConfigError, match=said):
                store.append([event(1), bad])
        assert list(store.read()) == []

    def test_what_was_written_cannot_be_changed(self, store: MetricsStore) -> None:
        data = {"list": [1]}
        store.append([Event("op", "k", data=data)])
        data["list"].append(2)
        ((_, found),) = store.read()
        found.data["list"].append(3)
        assert [found.data for _, found in store.read()] == [{"list": [1]}]

    def test_survives_reopening(self, make: Make) -> None:
        with make() as store:
            store.append([event(i) for i in range(3)])
            last = [position for position, _ in store.read()][-1]
            durable = store.durable
        with make() as store:
            assert numbers(store.read()) == ([0, 1, 2] if durable else [])
            if durable:
                store.append([event(2), event(3)])
                assert numbers(store.read(last)) == [3]

    def test_closes_twice_and_is_closed(self, make: Make) -> None:
        store = make()
        store.append([event(0)])
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.append([event(1)])
        with pytest.raises(StoreError, match="closed"):
            store.read()

    @pytest.mark.parametrize("after", ["nowhere", "9" * 5000])
    def test_a_foreign_position_is_refused(self, store: MetricsStore, after: str) -> None:
        with pytest.raises(StoreError, match=f"{after[-7:]}' is no position"):
            store.read(after)
