"""The event: the one record that every log, store, table and picture is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

LOST = "lost"
"""Kind of an event that stands for a writer's events ``data["first"]`` to ``number``, which are
lost for good; ``data["why"]`` says how."""

AGAIN = "again"
"""Kind of an event that uses up a number of a writer whose event was stored before, under the same
id: ``data["of"]``, and ``data["told"]`` if it said something else."""

CLOCK = "clock"
"""Kind of an event that says when something happened, in seconds since 1970. It has no number, and
is kept beside the log of a run, which has no clock."""

RANK, ACTIVATION = "rank", "activation"
"""Kinds of a service: an event that waits for its reward, and that its action was taken."""

TOLD_ASIDE = frozenset(
    ("run", "end", "lifecycle", "health", "request", "refusal", "rollback", "epoch", "ab_test",
     LOST, AGAIN, CLOCK, RANK, ACTIVATION)
)  # fmt: skip
"""Kinds that are no part of a history: how a run went, what a service awaits, what a log lacks."""

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
        writer: Writer that numbers its events; empty for one that does not.
        number: Number of the event among its writer's, from 0 without holes; -1 without a writer.
            A writer that resumes tells the same events under the same numbers.
    """

    op_id: str
    kind: str
    scope: str = ""
    run: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    writer: str = ""
    number: int = -1


def joined(*names: str) -> str:
    """Join names by ``/`` into one that no other names give, whatever they are.

    Example:
        >>> joined("a", "b/c"), joined("a/b", "c"), joined("", "-")
        ('a/b%2Fc', 'a%2Fb/c', '-/%2D')
    """
    return "/".join([_escaped(name) for name in names])


def parted(name: str) -> list[str]:
    """Names that `joined` made one of.

    Example:
        >>> parted(joined("a/b", "", "-", "50 %"))
        ['a/b', '', '-', '50 %']
    """
    return ["" if one == "-" else unquote(one) for one in name.split("/")]


def first_number(event: Event) -> int:
    """Lowest number that an event stands for: its own, unless it says that others are lost."""
    first = event.data.get("first") if event.kind == LOST else None
    return first if isinstance(first, int) and 0 <= first <= event.number else event.number


def again(event: Event, **facts: Any) -> Event:
    """Event in place of one that is stored already."""
    op_id = f"{event.writer}//again/{event.number}"
    return replace(event, op_id=op_id, kind=AGAIN, data={"of": event.op_id, **facts})


def _escaped(name: str) -> str:
    if name == "-":
        return "%2D"  # "-" alone is the empty name
    return name.replace("%", "%25").replace("/", "%2F") or "-"


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
