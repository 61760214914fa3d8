"""Write one run's events under ids of their own, and read a scope's events back in order.

All events of a run are numbered, so that a hole in the log is seen. An event's id comes from its
number, its subject or, for what came of a decision, from that decision. So a resumed run that does
the same again writes the same ids, and a store keeps one copy. It reads others' events where it
read them before, so that sums over the history are equal to the last bit.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from secrets import token_hex
from threading import Lock
from typing import Any, final

from esper.contracts.errors import ConfigError, LossError
from esper.contracts.events import AGAIN, CLOCK, LOST, Event, event_data, event_from, joined
from esper.contracts.selection import Decision, decision_data
from esper.records.fold import ANSWERS, KINDS, WITHDRAWAL
from esper.stores.base import MetricsStore
from esper.stores.behind.backlog import bridged
from esper.stores.journal import Journal

logger = logging.getLogger(__name__)

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

    Raises:
        LeaseError: if another process that lives writes a run of this name.
        StoreError: if the store cannot be written.

    Attributes:
        journal: The store, written behind; ``None`` without one.
        scope: As given.
        run: As given.
        name: First part of the ids of events and decisions.
        written: Events so far.
        reads: When events of others were read; goes into a checkpoint, for `read_again`.
    """

    def __init__(
        self, store: MetricsStore | Journal | None, *, scope: str = "", run: str = ""
    ) -> None:
        self.journal = store if store is None or isinstance(store, Journal) else Journal(store)
        self.scope = scope
        self.written = 0
        self.reads: list[tuple[int, int]] = [(0, 0)]
        self._order = Lock()
        self._cursor = ""
        self._seen: dict[str, int] = {}
        self._lossy = False
        self.rename(run)

    def rename(self, run: str) -> None:
        """Go on under another name; what was written keeps the old one."""
        self.flush()
        self.run = run
        drawn = token_hex(8) if not run and self.journal is not None else run
        names = [name for name in (self.scope,) if name]
        self.name = joined(*names, drawn) if names or drawn else "local"
        self._told = joined(*names, run)
        if self.journal is not None and run:
            self.journal.claim(self.name)

    def decision_id(self, layer_name: str, number: int) -> str:
        """Id of the ``number``-th choice in a layer, unique in the store."""
        return f"{self.name}/{joined(layer_name)}/{number}"

    # Writing

    def write(self, kind: str, data: dict[str, Any], *, stored: bool = True) -> Event:
        """An event, written at the next `flush`; without ``stored`` it is not written."""
        if not stored or self.journal is None:
            return Event("", kind, self.scope, self.run, data)
        decision = data.get("decision") if kind in ANSWERS else ""
        # Of its own id: a run that ended may be taken up again, and its outcome come after all.
        answer = WITHDRAWAL if kind == WITHDRAWAL else "answer"
        self._put(kind, data, f"{decision}//{answer}" if decision else "")
        return Event("", kind, self.scope, self.run, data)

    def write_decision(self, decision: Decision) -> None:
        """`write` a decision, whose data are made when they are written: it never changes."""
        if self.journal is not None:
            with self._order:
                empty = self._event("decision", {})
                self.journal.later(partial(_decision_event, empty, decision))

    def write_about(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """An event named after its subject, and kept once however often it is told."""
        if self.journal is not None:
            self._put(kind, data, f"{self._told}//{joined(kind, subject)}")
            self.journal.soon()

    def write_once(self, kind: str, data: dict[str, Any]) -> None:
        """An event named after its content, without a number, however often a run is told it."""
        digest = blake2b(repr(sorted(data.items())).encode(), digest_size=8).hexdigest()
        if self.journal is not None:
            op_id = f"{self._told}//{joined(kind, digest)}"
            self.journal.append(Event(op_id, kind, self.scope, self.run, data))

    def write_clock(self, data: dict[str, Any]) -> None:
        """An event beside the log, which no other run repeats; none where nothing outlives it."""
        if self.journal is not None and self.journal.store.durable:
            op_id = f"{self._told}//{CLOCK}/{token_hex(8)}"
            self.journal.later(Event(op_id, CLOCK, self.scope, self.run, data))
            self.journal.soon()

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

    def _put(self, kind: str, data: dict[str, Any], op_id: str) -> None:
        with self._order:
            assert self.journal is not None
            self.journal.later(self._event(kind, data, op_id))

    def _event(self, kind: str, data: dict[str, Any], op_id: str = "") -> Event:
        number = self.written
        self.written += 1
        op_id = op_id or f"{self.name}//{number}"
        return Event(op_id, kind, self.scope, self.run, data, writer=self.name, number=number)

    # Reading

    def read_all(
        self, position: int | None = None, *, place: Mapping[str, Any] | None = None
    ) -> Iterator[Event]:
        """The history of the scope, in order.

        Args:
            position: Leave out this run's events from this number on, and write them anew.
            place: Where to go on, as `place` was; from the beginning by default.

        Raises:
            StoreError: if the store cannot be read.
        """
        if self.journal is None:
            return
        start = place or {"cursor": "", "others": 0, "seen": {}}
        others, cursor, self._seen = start["others"], start["cursor"], dict(start["seen"])
        for at, event in self.journal.read(cursor, scope=self.scope, kinds=KINDS):
            cursor = at
            if event.writer != self.name:
                others += 1
                self._see(event)
            elif position is not None and event.number >= position:
                continue
            yield event
        self.written = self._next_number() if position is None else position
        self._cursor, self.reads = cursor, [(0, others)]

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
        found = self.journal.read(scope=self.scope, run=self.run)
        mine = _latest(event for _, event in found if event.writer == self.name)
        own = [
            event
            for event in mine
            if event.kind in KINDS and (position is None or event.number < position)
        ]
        found = self.journal.read(scope=self.scope, kinds=KINDS)
        others = (pair for pair in found if pair[1].writer != self.name)
        done, read, cursor = 0, 0, ""
        for written, known in reads:
            while done < len(own) and own[done].number < written:
                yield own[done]
                done += 1
            for place, event in islice(others, known - read):
                self._see(event)
                yield event
                read, cursor = read + 1, place
        yield from own[done:]
        self.written = self._next_number() if position is None else position
        self._cursor, self.reads = cursor, [(written, known) for written, known in reads]

    @property
    def place(self) -> dict[str, Any]:
        """Place of the reader after `read_all`, for a snapshot."""
        return {"cursor": self._cursor, "others": self.reads[-1][1], "seen": dict(self._seen)}

    def fetch_new(self) -> list[Event]:
        """Events that others have written since the last read; waits 0.08 s at most.

        Raises:
            StoreError: if the store cannot be read, or is late.
        """
        if self.journal is None:
            return []
        try:
            found, cursor = self.journal.fetch(self._cursor, scope=self.scope, kinds=KINDS)
        except LossError:
            self._cursor, self._lossy = "", True  # from the beginning, without what was seen
            raise
        new = [event for _, event in found if event.writer != self.name]
        if self._lossy:
            new = [event for event in new if event.number >= self._seen.get(event.writer, 0)]
            self._lossy = False
        self._cursor = cursor
        return new

    def note_read(self, event: Event) -> None:
        """Note that an event of `fetch_new` enters the history now."""
        self._see(event)
        written, others = self.reads[-1]
        if written == self.written:
            del self.reads[-1]
        self.reads.append((self.written, others + 1))

    def read_run(self, run: str | None = None) -> list[Event]:
        """Every event that this run, or another, has written so far, in order."""
        if self.journal is None:
            return []
        found = self.journal.read(scope=self.scope, run=self.run if run is None else run)
        return [event for _, event in found if event.kind not in (AGAIN, CLOCK)]

    def _see(self, event: Event) -> None:
        if event.number >= self._seen.get(event.writer, 0):
            self._seen[event.writer] = event.number + 1

    def _next_number(self) -> int:
        return 0 if self.journal is None else self.journal.store.next_number(self.name)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Place in the log, and the events that the store may not give to another process."""
        if self.journal is None:
            return {"run": self.run, "written": self.written, "reads": list(self.reads)}
        waiting = self.journal.undelivered()
        if self.journal.store.durable:
            kept = [*self.journal.recent(), *waiting]
        else:
            kept = [event for _, event in self.journal.read(scope=self.scope)]
        own = [event.number for event in waiting if event.writer == self.name]
        return {
            "run": self.run,
            "written": self.written,
            "stored": min(own, default=self.written),
            "reads": list(self.reads),
            "identity": self.journal.store.identity,
            "seen": dict(self._seen),
            "events": [event_data(event) for event in kept],
        }

    def load_state_dict(
        self, state: Mapping[str, Any], *, keep_name: bool
    ) -> tuple[int | None, Reads]:
        """Go on where `state_dict` was asked: tell again what the store lacks.

        Args:
            state: What it gave.
            keep_name: Go on under this writer's name rather than the state's.

        Returns:
            Position and reads for `read_history`.

        Raises:
            LeaseError: if another process that lives writes under the state's name.
            StoreError: if the store cannot be read or written.
        """
        if self.journal is None:
            return None, ()
        if not keep_name and state["run"] != self.run:
            self.rename(state["run"])
        events = [event_from(data) for data in state["events"]]
        if self.run != state["run"]:
            self.journal.append_all(events)
            return None, ()
        self._tell_again(events, state)
        return state["written"], state["reads"]

    def _tell_again(self, events: Sequence[Event], state: Mapping[str, Any]) -> None:
        assert self.journal is not None
        store = self.journal.store
        own = [event for event in events if event.writer == self.name]
        fill = list[Event]()
        gone = again = 0
        for first, last in store.missing(self.name, state["written"]):
            after = self._marker(last + 1)
            copies = [event for event in own if first <= event.number <= last]
            found = bridged(after, first, copies, "the store lost them")
            gone += sum(e.number - e.data["first"] + 1 for e in found if e.kind == LOST)
            again += sum(first <= e.number < state["stored"] for e in copies)
            fill += found
        others = [event for event in events if event.writer != self.name]
        self.journal.append_all([*others, *fill])
        if store.durable and store.identity != state["identity"]:
            logger.warning(
                "the store is not the one that run %r wrote to before: what other runs told there "
                "is missing",
                self.run,
            )
        behind = [w for w, number in state["seen"].items() if store.next_number(w) < number]
        if store.durable and (gone or again or behind):  # one in memory begins empty
            logger.warning(
                "the store has lost events: of run %r, %d were told again and %d are lost; of "
                "other runs, %d have fewer than before",
                *(self.run, again, gone, len(behind)),
            )

    def _marker(self, number: int) -> Event:
        return Event("", LOST, self.scope, self.run, writer=self.name, number=number)

    def require_no_store(self, what: str) -> None:
        """Refuse what only makes sense without a store.

        Raises:
            ConfigError: if there is one.
        """
        if self.journal is not None:
            raise ConfigError(
                f"{what}() is for a tracker without a store; with one, open a tracker on the same "
                "store, or rewind() it to a position"
            )


def _latest(events: Iterable[Event]) -> list[Event]:
    """Events of one writer by number; of one number the latest.

    A run that ended and was taken up again has told something else there.
    """
    return sorted({event.number: event for event in events}.values(), key=attrgetter("number"))


def _decision_event(empty: Event, decision: Decision) -> Event:
    return Event(
        empty.op_id,
        "decision",
        empty.scope,
        empty.run,
        decision_data(decision),
        writer=empty.writer,
        number=empty.number,
    )
