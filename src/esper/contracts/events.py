"""The event: the one record that every log, store, table and picture is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
"""Version of what events mean. 0, before 0.1.0: a graft's end was two events, graft and verdict."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as plain JSON data, written once and never changed.

    Attributes:
        op_id: Operation id, chosen by the writer and unique in a store; an event that is appended
            twice under one id counts once.
        kind: What happened: ``"decision"``, ``"outcome"``, ``"lifecycle"``...
        scope: Whose history it belongs to; histories of different scopes do not mix.
        run: The run that wrote it; empty outside a run.
        data: The facts, JSON types only.
        schema: Version of the meaning of ``data``; see `SCHEMA`.
    """

    op_id: str
    kind: str
    scope: str = ""
    run: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def event_data(event: Event) -> dict[str, Any]:
    """An event as plain data, for a checkpoint."""
    return {name: getattr(event, name) for name in Event.__slots__} | {"data": dict(event.data)}


def event_from(data: Mapping[str, Any]) -> Event:
    """The event that `event_data` wrote down.

    Example:
        >>> event = Event("a/1", "epoch", "letter", "run", {"epoch": 3})
        >>> event_from(event_data(event)) == event
        True
    """
    return Event(**{"schema": 0, **data})
