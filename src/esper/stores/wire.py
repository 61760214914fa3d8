"""Events and errors as a service and its clients write them to each other, in JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from esper.contracts.errors import (
    ConfigError,
    ConflictError,
    HoleError,
    LeaseError,
    LossError,
    StoreError,
)
from esper.contracts.events import Event

Row = Sequence[Any]
"""An event: its attributes in order."""

_PLAIN = {made.__name__: made for made in (ConfigError, LeaseError, LossError, StoreError)}


def row_of(event: Event) -> Row:
    """Row of an event."""
    return [
        *(event.op_id, event.kind, event.scope, event.run, dict(event.data)),
        *(event.schema, event.writer, event.number),
    ]


def event_of(row: Any) -> Event:
    """Event of a row.

    Raises:
        ConfigError: if the row is none.
    """
    match row:
        case [str(), str(), str(), str(), dict(), int() as schema, str(), int() as number] if (
            not isinstance(schema, bool) and not isinstance(number, bool)
        ):
            return Event(*row)
    raise ConfigError(
        f"an event is {row!r:.200}; write [op_id, kind, scope, run, data, schema, writer, number]"
    )


def error_data(error: Exception) -> dict[str, Any]:
    """An error of a store, with what makes it anew."""
    data: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, ConflictError):
        data["op_ids"] = sorted(error.op_ids)
    if isinstance(error, HoleError):
        data |= {"writer": error.writer, "next_number": error.next_number}
    return data


def refusal(why: str) -> dict[str, Any]:
    """A request that is refused before any store is asked; for a client, a `StoreError`."""
    return {"error": "RequestError", "message": why}


def error_from(data: Mapping[str, Any]) -> ConfigError | StoreError:
    """The error that `error_data` wrote down; a `StoreError` if it is of no kind known here.

    Example:
        >>> error_from(error_data(HoleError("no 3", "w", 3))).next_number
        3
    """
    name, message = data.get("error"), str(data.get("message", "the service gives no reason"))
    if name == "ConflictError":
        return ConflictError(message, [str(op_id) for op_id in data.get("op_ids", ())])
    if name == "HoleError":
        return HoleError(message, str(data.get("writer")), int(data.get("next_number", 0)))
    return _PLAIN.get(str(name), StoreError)(message)
