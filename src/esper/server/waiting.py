"""Waiting: events of one scope whose reward is awaited, also after a restart of the service.

An event is stored when it is ranked, and when it is activated. A service reads those of others, of
one that died and of one that lives, when it is first asked, when it is asked for an event that it
does not know, before it ranks one that the caller named, and before it ends any. Their time begins
when they are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Lock
from typing import final

from esper.contracts.errors import SelectionError
from esper.contracts.events import ACTIVATION, RANK, Event
from esper.records.fold import ANSWERS
from esper.server.chooser import Chooser


@final
@dataclass(frozen=True, slots=True)
class Awaited:
    """An event whose reward is awaited.

    Attributes:
        decision: Id of its decision.
        until: When it ends by itself, by the chooser's clock.
        active: It then earns the default; else nothing.
    """

    decision: str
    until: float
    active: bool


@final
class Waiting:
    """Events by their ids. Safe to use from several threads.

    Args:
        chooser: Of the scope.
        wait_s: Time after which an event ends by itself, in seconds.
    """

    def __init__(self, chooser: Chooser, wait_s: float) -> None:
        self._chooser, self._wait_s = chooser, wait_s
        self._events: dict[str, Awaited] = {}
        self._named: dict[str, str] = {}
        self._cursor: str | None = None
        self._lock, self._looking = Lock(), Lock()

    def hold(self, event: str) -> None:
        """Keep an id for an event that is about to be ranked; `add` or `drop` it then.

        Raises:
            SelectionError: if there is an event of this id, here or at another service.
            StoreError: if the store cannot be read.
        """
        self._look()
        with self._lock:
            if event in self._events:
                raise SelectionError(f"there is an event {event!r} already; give each its own id")
            self._events[event] = Awaited("", float("inf"), active=False)

    def add(self, event: str, decision: str, *, active: bool) -> None:
        """Await the reward of an event; it is written, and stored by the chooser's `settle`."""
        data = {"event": event, "decision": decision, "active": active}
        self._chooser.note(RANK, decision, data)
        self._put(event, decision, active=active)

    def activate(self, event: str) -> None:
        """Note that the action was taken, as `add`; its time begins anew.

        Raises:
            SelectionError: if there is no such event.
            StoreError: if it is not known here, and the store cannot be read.
        """
        found = self._found(event)
        if not found.active:  # told once
            data = {"event": event, "decision": found.decision}
            self._chooser.note(ACTIVATION, found.decision, data)
        self._put(event, found.decision, active=True)

    def take(self, event: str) -> Awaited:
        """No longer await the reward of an event; `give_back` undoes it.

        Raises:
            SelectionError, StoreError: as `activate`.
        """
        self._found(event)
        found = self.drop(event)
        if found is None:  # another thread was faster
            raise nothing_waits(event)
        return found

    def give_back(self, event: str, awaited: Awaited) -> None:
        """Await the reward again that `take` no longer awaits."""
        with self._lock:
            self._events[event], self._named[awaited.decision] = awaited, event

    def drop(self, event: str) -> Awaited | None:
        """Forget an event, and return it if there is one."""
        with self._lock:
            ended = self._events.pop(event, None)
            if ended is not None:
                self._named.pop(ended.decision, None)
            return ended

    def take_late(self) -> list[Awaited]:
        """`take` all whose time is over.

        Raises:
            StoreError: if the store cannot be read.
        """
        if self._cursor is not None and not self._late():
            return []
        self._look()
        taken = [self.drop(event) for event in self._late()]
        return [one for one in taken if one is not None]  # another thread was faster

    def _late(self) -> list[str]:
        now = self._chooser.clock()
        with self._lock:
            return [event for event, one in self._events.items() if one.until <= now]

    def _found(self, event: str) -> Awaited:
        found = self._events.get(event)
        if found is None:
            self._look()
            found = self._events.get(event)
        if found is None or not found.decision:
            raise nothing_waits(event)
        return found

    def _put(self, event: str, decision: str, *, active: bool) -> None:
        until = self._chooser.clock() + self._wait_s
        self.give_back(event, Awaited(decision, until, active))

    def _look(self) -> None:
        """Take in what others ranked, activated and rewarded since the last look."""
        with self._looking:
            for position, event in self._news():
                self._cursor = position
                if event.kind in ANSWERS:
                    self._answered(str(event.data.get("decision")))
                elif event.run != self._chooser.tracker.events.run:
                    self._take_in(event)

    def _news(self) -> Iterator[tuple[str, Event]]:
        if self._cursor is None:  # what came before the first event of all matters to none
            self._cursor = self._chooser.end()
            for found in self._chooser.read("", [RANK]):
                yield found
                break
            else:
                return
        yield from self._chooser.read(self._cursor, [RANK, ACTIVATION, *ANSWERS])

    def _answered(self, decision: str) -> None:
        name = self._named.get(decision)
        if name is not None:
            self.drop(name)

    def _take_in(self, event: Event) -> None:
        name, decision = event.data.get("event"), event.data.get("decision")
        if not isinstance(name, str) or not isinstance(decision, str):
            return  # another program wrote it
        known = self._events.get(name)
        if event.kind == RANK and known is None:
            self._put(name, decision, active=event.data.get("active") is True)
        elif event.kind == ACTIVATION and known is not None and known.decision == decision:
            until = self._chooser.clock() + self._wait_s
            self.give_back(name, replace(known, until=until, active=True))


def nothing_waits(event: str) -> SelectionError:
    """Error for an event that has its reward, or is not there."""
    return SelectionError(
        f"no event {event!r} waits for its reward; it has one, or its time is over"
    )
