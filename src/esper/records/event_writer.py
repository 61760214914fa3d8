"""Write one run's events under ids of their own, and read a scope's events back in order.

Events of the history are numbered within the run; events that only tell what a run did are named
after their subject. Either way a resumed run that does the same again writes the same ids, and a
store keeps one copy. It reads others' events where it read them before, so that sums over the
history are equal to the last bit.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from secrets import token_hex
from typing import Any, final

from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, decision_data
from esper.records.fold import KINDS, fold
from esper.records.history import History
from esper.records.seed import SeedRecord
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal

_MEASUREMENTS = ("accuracy_delta", "loss_delta", "latency_ms", "memory_mb", "reward_stderr", "rent")
_measured = attrgetter(*_MEASUREMENTS)

Reads = Sequence[tuple[int, int]]
"""When a run read the events of others: the number of its own by then, and of theirs; growing."""

Bindings = Iterable[tuple[str, int, str]]
"""Layers, seeds, and the blueprints that they are bound to."""


@final
class EventWriter:
    """The one writer of a run's events.

    Args:
        store: Where they go; ``None``: nowhere, and nothing can be read back.
        scope: Whose history this is; only events of the same scope are read.
        run: Name of the run, unique in the store unless the run is resumed. If empty, a random one
            is drawn where there is a store.

    Attributes:
        journal: The store, written behind; ``None`` without one.
        scope: As given.
        run: As given.
        name: First part of the ids of events and decisions.
        written: Numbered events so far.
        reads: When events of others were read; goes into a checkpoint, for `read_again`.
    """

    def __init__(
        self, store: MetricsStore | Journal | None, *, scope: str = "", run: str = ""
    ) -> None:
        self.journal = store if store is None or isinstance(store, Journal) else Journal(store)
        self.scope = scope
        self.written = 0
        self.reads: list[tuple[int, int]] = [(0, 0)]
        self._cursor = ""
        self.rename(run)

    def rename(self, run: str) -> None:
        """Go on under another name; what was written keeps the old one."""
        self.flush()
        self.run = run
        self._told = "/".join(filter(None, (self.scope, run))) or "local"
        drawn = token_hex(8) if not run and self.journal is not None else run
        self.name = "/".join(filter(None, (self.scope, drawn))) or "local"

    def decision_id(self, layer_name: str, number: int) -> str:
        """Id of the ``number``-th choice in a layer, unique in the store."""
        return f"{self.name}/{layer_name}/{number}"

    # Writing

    def write(self, kind: str, data: dict[str, Any], *, stored: bool = True) -> Event:
        """A numbered event, written at the next `flush`; without ``stored`` it has no number."""
        event = Event(self._numbered(self.written), kind, self.scope, self.run, data)
        if stored and self.journal is not None:
            self.written += 1
            self.journal.later(event)
        return event

    def write_decision(self, decision: Decision) -> None:
        """`write` a decision, whose data are made when they are written: it never changes."""
        if self.journal is not None:
            make = partial(_decision_event, self._numbered(self.written), self.scope, self.run)
            self.journal.later(partial(make, decision))
            self.written += 1

    def write_about(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """An event named after its subject; written now, and kept once however often it is told."""
        if self.journal is not None:
            op_id = f"{self._told}/{kind}/{subject}"
            self.journal.append(Event(op_id, kind, self.scope, self.run, data))

    def write_once(self, kind: str, data: dict[str, Any]) -> None:
        """An event named after its content, however often a run is told it."""
        digest = blake2b(repr(sorted(data.items())).encode(), digest_size=8).hexdigest()
        self.write_about(kind, digest, data)

    def flush(self) -> None:
        """Hand all events so far to the store, in the order in which they happened."""
        if self.journal is not None:
            self.journal.catch_up()

    def flush_soon(self) -> None:
        """`flush`, within 50 ms or so and in another thread."""
        if self.journal is not None:
            self.journal.soon()

    async def flush_async(self) -> None:
        """`flush` in another thread, so that the event loop goes on."""
        if self.journal is not None:
            await asyncio.to_thread(self.flush)

    # Reading

    def read_all(self, position: int | None = None) -> Iterator[Event]:
        """The history of the scope from its beginning, in order.

        Args:
            position: Leave out this run's events from this number on, and write them anew.

        Raises:
            StoreError: if the store cannot be read.
        """
        if self.journal is None:
            return
        written, others, cursor = 0, 0, ""
        for place, event in self.journal.read(scope=self.scope, kinds=KINDS):
            cursor = place
            number = self._number_of(event)
            if number is None:
                others += 1
            elif position is not None and number >= position:
                continue
            else:
                written = max(written, number + 1)
            yield event
        self.written, self._cursor, self.reads = written, cursor, [(0, others)]

    def read_again(self, position: int | None, reads: Reads) -> Iterator[Event]:
        """The history in the order in which this run wrote and read it.

        Args:
            position: As for `read_all`.
            reads: What `reads` was then, with one pair at least.

        Raises:
            StoreError: if the store cannot be read.
        """
        if self.journal is None:
            return
        found = self.journal.read(scope=self.scope, run=self.run, kinds=KINDS)
        numbered = ((self._number_of(event), event) for _, event in found)
        own = [
            (at, event)
            for at, event in numbered
            if at is not None and (position is None or at < position)
        ]
        found = self.journal.read(scope=self.scope, kinds=KINDS)
        others = (pair for pair in found if self._number_of(pair[1]) is None)
        done, read, cursor = 0, 0, ""
        for written, known in reads:
            while done < len(own) and own[done][0] < written:
                yield own[done][1]
                done += 1
            for place, event in islice(others, known - read):
                yield event
                read, cursor = read + 1, place
        for _, event in own[done:]:
            yield event
        self.written = own[-1][0] + 1 if own else 0
        self._cursor, self.reads = cursor, [(written, known) for written, known in reads]

    def read_new(self) -> Iterator[Event]:
        """Events that others have written since the last read.

        Raises:
            StoreError: if the store cannot be read.
        """
        if self.journal is None:
            return
        for place, event in self.journal.read(self._cursor, scope=self.scope, kinds=KINDS):
            if self._number_of(event) is None:
                yield event
                written, others = self.reads[-1]
                if written == self.written:
                    del self.reads[-1]
                self.reads.append((self.written, others + 1))
            self._cursor = place  # last, so that an event that cannot be folded is met again

    def read_run(self) -> list[Event]:
        """Every event that this run has written so far, in order."""
        if self.journal is None:
            return []
        return [event for _, event in self.journal.read(scope=self.scope, run=self.run)]

    def _numbered(self, number: int | str) -> str:
        return f"{self.name}/tracker/{number}"

    def _number_of(self, event: Event) -> int | None:
        """Number of an event of this run; ``None`` for one of another."""
        prefix = self._numbered("")
        return int(event.op_id[len(prefix) :]) if event.op_id.startswith(prefix) else None


def read_history(
    events: EventWriter,
    old: History,
    position: int | None = None,
    *,
    reads: Reads = (),
    bindings: Bindings = (),
) -> History:
    """The history of the store, up to a position of this run; ``old`` itself without a store.

    Args:
        events: Reads the store.
        old: Gives settings and strategy.
        position: Of this run; everything by default.
        reads: Of this run, up to the position; without them all is read in the order of the store.
        bindings: Made after the first of the reads, as when the run began.

    Raises:
        StoreError: if the store cannot be read.
    """
    old.own = events.name
    if events.journal is None:
        return old
    history = History(old.window_size, old.decay_factor, old.begin, events.name)
    again = events.read_again(position, reads) if reads else events.read_all(position)
    for event in islice(again, reads[0][1] if reads else None):
        fold(history, event)
    for layer_name, seed_idx, blueprint in bindings:
        history.layer(layer_name).bind(seed_idx, blueprint)
    for event in again:
        fold(history, event)
    return history


def place_data(record: SeedRecord, decision_id: str) -> dict[str, Any]:
    """The seed and the decision that an event is about, as JSON data."""
    return {
        "decision": decision_id,
        "layer": record.layer_name,
        "seed": record.seed_idx,
        "blueprint": record.blueprint,
    }


def add_measured(data: dict[str, Any], delta: PerformanceDelta) -> None:
    """Add a measurement to an event's data, its reward apart, without what was not measured."""
    for name, value in zip(_MEASUREMENTS, _measured(delta), strict=True):
        if value is not None:
            data[name] = float(value)


def _decision_event(op_id: str, scope: str, run: str, decision: Decision) -> Event:
    return Event(op_id, "decision", scope, run, decision_data(decision))
