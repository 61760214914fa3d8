"""Event log as rows of plain data, one dictionary for each event, without ids and clocks."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from esper.contracts.events import CLOCK, Event

_CLOCKS = ("timing", CLOCK)


def rows(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Rows of the event log; two runs of the same spec and code give the same, to the byte.

    Returns:
        One dictionary for each event, with ``epoch``, ``kind`` and ``data``: without operation
        ids and the run's name, which differ between runs, and without the events that depend on a
        clock (`timings` has them).
    """
    return [_row(event, at) for at, event in _dated(events) if event.kind not in _CLOCKS]


def timings(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Rows of what depends on the machine: latencies of kernels, and when each epoch ended."""
    return [_row(event, at) for at, event in _dated(events) if event.kind in _CLOCKS]


def as_lines(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """JSON lines, one for each row."""
    return (json.dumps(row) for row in found)


def _dated(events: Iterable[Event]) -> Iterator[tuple[int, Event]]:
    """Pair each event with its epoch: that of the ``epoch`` event that comes next and closes it."""
    waiting: list[Event] = []
    last = -1
    for event in events:
        waiting.append(event)
        if event.kind == "epoch":
            last = event.data["epoch"]
            yield from ((last, one) for one in waiting)
            waiting = []
    yield from ((last + 1, one) for one in waiting)


def _row(event: Event, epoch: int) -> dict[str, Any]:
    data = dict(event.data)
    if isinstance(data.get("decision"), str):
        data["decision"] = data["decision"].removeprefix(f"{event.scope}/{event.run}/")
    return {"epoch": epoch, "kind": event.kind, "data": data}
