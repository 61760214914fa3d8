"""Laws of writers that share a store: numbers without holes, leases, snapshots, several at once.

They are part of ``StoreLaws``, whose fixtures they take.
"""
# ruff: noqa: D102 (the name of a law is what it says)

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from esper.contracts.errors import HoleError, LeaseError
from esper.contracts.events import AGAIN, LOST, Event
from esper.stores import MetricsStore
from esper.stores.leases import holder

STRANGER = "elsewhere 7 1 token"
"""Holder of a lease on another machine."""

Make = Callable[[], MetricsStore]


def event(number: int, **names: str) -> Event:
    """Event ``op-<number>``; its data holds the number."""
    fields = {"kind": "outcome", "scope": "s", "run": "r"} | names
    return Event(f"op-{number}", data={"number": number}, **fields)  # type: ignore[arg-type]  # names


def told(writer: str, *numbers: int) -> list[Event]:
    """Events of a writer under these numbers."""
    return [
        Event(f"{writer}-{n}", "outcome", "s", "r", {"number": n}, writer=writer, number=n)
        for n in numbers
    ]


def numbers(pairs: Iterator[tuple[str, Event]]) -> list[int]:
    """Numbers of events made by ``event``, in the order read."""
    return [found.data["number"] for _, found in pairs]


class WriterLaws:
    """Laws of stores with several writers."""

    def test_a_writers_events_come_without_holes(self, store: MetricsStore) -> None:
        store.append([event(0)])  # one without a writer
        store.append(told("w", 0, 1, 2))
        store.append(told("v", 0))
        with pytest.raises(HoleError, match="events of 'w' up to 2, and number 4 came") as caught:
            store.append([*told("v", 1), *told("w", 4)])
        assert (caught.value.writer, caught.value.next_number) == ("w", 3)
        assert (store.next_number("v"), store.next_number("w"), store.next_number("x")) == (1, 3, 0)
        store.append(told("w", 1, 2, 3, 4))
        assert store.next_number("w") == 5
        assert [(e.writer, e.number) for _, e in store.read(scope="s")] == [
            *(("", -1), ("w", 0), ("w", 1), ("w", 2), ("v", 0), ("w", 3), ("w", 4))
        ]

    def test_an_event_may_stand_for_those_that_are_lost(self, store: MetricsStore) -> None:
        store.append(told("w", 0, 1))
        lost = Event("lost", LOST, "s", "r", {"first": 2, "why": "power"}, writer="w", number=6)
        store.append([lost, *told("w", 7)])
        assert (store.next_number("w"), store.missing("w", 10)) == (8, [(8, 9)])
        assert store.missing("w", 8) == store.missing("w", 0) == []
        assert store.missing("v", 2) == [(0, 1)]

    def test_a_writer_that_resumes_tells_again_what_is_there(self, store: MetricsStore) -> None:
        store.append(told("w", 0, 1, 2, 3))
        store.append(told("w", 2, 3, 4))
        store.append([Event("another way", "k", "s", "r", {"number": 9}, writer="w", number=3)])
        assert store.next_number("w") == 5
        assert numbers(store.read()) == [0, 1, 2, 3, 4, 9]

    def test_a_number_is_used_up_by_an_event_that_is_stored_already(
        self, store: MetricsStore
    ) -> None:
        store.append([event(0)])
        store.append([replace(event(0), writer="w", number=0), *told("w", 1)])
        assert (store.next_number("w"), store.missing("w", 2)) == (2, [])
        kinds = ["outcome", AGAIN, "outcome"]
        assert sorted(found.kind for _, found in store.read()) == sorted(kinds)
        assert [found.data for _, found in store.read(kinds=[AGAIN])] == [{"of": "op-0"}]

    def test_a_store_has_an_identity(self, make: Make) -> None:
        with make() as one, make() as other:
            assert one.identity
            assert (one.identity == other.identity) is one.durable

    def test_the_end_of_a_scope_is_a_position(self, store: MetricsStore) -> None:
        assert store.end("s") in {"", "0"}
        store.append([event(0), event(1, scope="t"), event(2)])
        assert numbers(store.read(store.end("s"), scope="s")) == []
        store.append([event(3)])
        assert numbers(store.read(store.end("s"), scope="s")) == []
        assert store.end("s") >= next(iter(store.read()))[0]

    def test_a_lease_is_of_one_process(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                return
            one.claim("w", STRANGER, 60)
            one.claim("w", STRANGER, 60)
            with pytest.raises(LeaseError, match="'w' is written by process 7 of another machine"):
                other.claim("w", holder(), 60)
            other.claim("v", holder(), 60)
            one.release("w")
            one.release("w")
            other.claim("w", holder(), 60)

    def test_a_lease_ends_by_itself(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                return
            one.claim("w", STRANGER, 0)
            other.claim("w", holder(), 60)
            one.append(told("v", 0))
            with pytest.raises(LeaseError, match="'w' is written by another process now"):
                one.append(told("w", 0))
            other.append(told("w", 0))
            assert numbers(one.read()) == [0, 0]

    def test_a_clock_that_was_put_back_keeps_no_lease_for_ever(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                return
            one.claim("w", STRANGER, 3600)  # an hour, as if the clock had gone back by that
            with pytest.raises(LeaseError):
                other.claim("w", holder(), 0.05)
            patience = time.monotonic() + 30
            while time.monotonic() < patience:
                try:
                    other.claim("w", holder(), 60)
                except LeaseError:
                    time.sleep(0.01)
                else:
                    return
            raise AssertionError("the lease did not end")

    def test_the_latest_writer_of_a_process_goes_on(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                return
            one.claim("w", holder(), 60)
            other.claim("w", holder(), 60)
            other.append(told("w", 0))
            with pytest.raises(LeaseError):
                one.append(told("w", 1))

    def test_a_reservation_is_of_one_holder(self, make: Make) -> None:
        odd = "é/%2F 7\n"
        with make() as one, make() as two:
            other = two if one.durable else one
            assert one.reserve("a", odd, "x y", 60)
            assert one.reserve("a", odd, "x y", 60)
            assert not other.reserve("a", odd, "x", 60)
            assert not other.reserve("a", odd, "x", 0)  # which gives back nothing of another's
            assert other.reserve("a", "2", "x", 60)
            assert other.reserve("a/", odd, "x", 60)
            assert other.reserve("", "", "x", 60)
            assert one.reserved("a") == other.reserved("a") == {odd: "x y", "2": "x"}
            assert (one.reserved("a/"), one.reserved(""), one.reserved("b")) == (
                {odd: "x"}, {"": "x"}, {}
            )  # fmt: skip
            assert other.reserve("a", odd, "x y", 0)  # the holder counts, not who asks
            assert one.reserved("a") == {"2": "x"}
            assert other.reserve("a", odd, "z", 60)
            one.append(told("w", 0))
            assert numbers(one.read()) == [0]

    def test_a_reservation_ends_by_itself(self, make: Make) -> None:
        with make() as store:
            assert store.reserve("a", "1", "x", 0.05)
            patience = time.monotonic() + 30
            while store.reserved("a") and time.monotonic() < patience:
                time.sleep(0.01)
            assert store.reserve("a", "1", "y", 60)
            assert not store.reserve("a", "1", "x", 60)

    def test_of_many_who_reserve_a_name_one_gets_it(self, make: Make) -> None:
        def reserve(worker: int) -> list[str]:
            target = other if one.durable and worker % 2 else one
            return [str(n) for n in range(20) if target.reserve("a", str(n), str(worker), 60)]

        with make() as one, make() as other, ThreadPoolExecutor(4) as pool:
            found = [name for names in pool.map(reserve, range(4)) for name in names]
            assert sorted(found, key=int) == [str(n) for n in range(20)]

    def test_snapshots_are_kept_by_name(self, make: Make) -> None:
        with make() as store:
            assert store.load_snapshot("a") is None
            store.save_snapshot("a", "{}")
            store.save_snapshot("b", "1")
            store.save_snapshot("a", "2 ü")
            if store.durable:
                with make() as other:
                    assert (other.load_snapshot("a"), other.load_snapshot("b")) == ("2 ü", "1")

    def test_an_operation_counts_once_across_writers(self, make: Make) -> None:
        with make() as one, make() as other:
            if not one.durable:
                other = one  # noqa: PLW2901 (writers of a place in memory share the object)
            batch = [event(i) for i in range(20)]
            one.append(batch[:12])
            other.append(batch)
            one.append(batch)
            assert numbers(one.read()) == numbers(other.read()) == list(range(20))

    @pytest.mark.parametrize("count", [2, 8])
    def test_writers_lose_nothing(self, make: Make, count: int) -> None:
        def write(worker: int, store: MetricsStore) -> None:
            for i in range(25):
                names = {"scope": str(worker)}
                store.append([event(worker * 1000 + 2 * i + j, **names) for j in range(2)])

        with make() as one, make() as other, ThreadPoolExecutor(count) as pool:
            targets = [one, other if one.durable else one] * (count // 2)
            for _ in pool.map(write, range(count), targets):
                pass
            for worker in range(count):
                found = numbers(one.read(scope=str(worker)))
                assert found == list(range(worker * 1000, worker * 1000 + 50))
            everything = numbers(one.read())
            assert len(everything) == 50 * count
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
