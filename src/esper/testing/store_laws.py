"""Laws of stores; subclass ``StoreLaws`` with a fixture ``make`` that opens one."""
# ruff: noqa: D102 (the name of a law is what it says)

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event
from esper.stores import MetricsStore

Make = Callable[[], MetricsStore]

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


def event(number: int, **names: str) -> Event:
    """Event ``op-<number>``; its data holds the number."""
    fields = {"kind": "outcome", "scope": "s", "run": "r"} | names
    return Event(f"op-{number}", data={"number": number}, **fields)  # type: ignore[arg-type]  # names


def numbers(pairs: Iterator[tuple[str, Event]]) -> list[int]:
    """Numbers of events made by ``event``, in the order read."""
    return [found.data["number"] for _, found in pairs]


class StoreLaws:
    """Laws of every store.

    The fixture ``make`` gives a callable that opens *the same place* each time, which is empty at
    first and belongs to this test alone; the test closes the stores that it opens.
    """

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("override the fixture 'make'")

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
        store.append([Event("op-1", "other", "s2", "r2", {"number": 99})])
        store.append([event(0), event(1), event(2), event(2)])
        assert numbers(store.read()) == [1, 0, 2]
        assert next(store.read())[1] == first

    def test_an_operation_counts_once_across_writers(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                other = one  # noqa: PLW2901 (writers of a place in memory share the object)
            batch = [event(i) for i in range(20)]
            one.append(batch[:12])
            other.append(batch)
            one.append(batch)
            assert numbers(one.read()) == numbers(other.read()) == list(range(20))

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
        ids=repr,
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

    def test_writers_lose_nothing(self, make: Make) -> None:
        def write(worker: int, store: MetricsStore) -> None:
            for i in range(25):
                names = {"scope": str(worker)}
                store.append([event(worker * 1000 + 2 * i + j, **names) for j in range(2)])

        with make() as one, make() as other, ThreadPoolExecutor(4) as pool:
            targets = [one, other] * 2 if one.durable else [one] * 4
            for _ in pool.map(write, range(4), targets):
                pass
            for worker in range(4):
                found = numbers(one.read(scope=str(worker)))
                assert found == list(range(worker * 1000, worker * 1000 + 50))
            everything = numbers(one.read())
            assert len(everything) == 200
            pairs = zip(everything[::2], everything[1::2], strict=True)
            assert all(second == first + 1 for first, second in pairs)  # batches are not torn

    def test_a_reader_beside_writers_misses_nothing(self, make: Make) -> None:
        def write(worker: int) -> None:
            for i in range(40):
                one.append([event(worker * 1000 + i)])

        with make() as one, make() as other, ThreadPoolExecutor(2) as pool:
            reader = other if one.durable else one
            work = [pool.submit(write, worker) for worker in range(2)]
            position, seen = "", list[int]()
            while len(seen) < 80:
                finished = all(job.done() for job in work)
                for place, found in reader.read(position):
                    seen.append(found.data["number"])
                    position = place
                assert not finished or len(seen) == 80
            for job in work:
                job.result()
            assert seen == numbers(one.read())

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

    def test_a_foreign_position_is_refused(self, store: MetricsStore) -> None:
        with pytest.raises(StoreError, match="'nowhere' is no position"):
            store.read("nowhere")
