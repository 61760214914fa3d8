"""Events as JSON: checking, copying, encoding and decoding without loss."""

import json
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from types import NoneType
from typing import Any

from pydantic_core import from_json

from esper.contracts.errors import ConfigError, ConflictError, HoleError, StoreError
from esper.contracts.events import Event, first_number

_PLAIN = frozenset({str, int, bool, NoneType})
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


class _Copy(dict[str, Any]):
    """Data that `checked` has made, and that it need not copy again."""

    __slots__ = ()


def checked(events: Iterable[Event]) -> list[Event]:
    """Deep copies of ``events``, of JSON types only.

    Raises:
        ConfigError: naming the place of a value that JSON would not give back equal: NaN, infinity,
            a tuple, a key that is not a string, any other object.
    """
    return [_checked(event) for event in events]


def copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """Deep copy of an event's data."""
    return _copied_mapping(data, "data")


def encode(data: Mapping[str, Any]) -> str:
    """Data of a checked event as JSON, ASCII only, so that every string survives."""
    return _ENCODER.encode(data)


def decode(text: str | bytes) -> dict[str, Any]:
    """Data from the JSON that ``encode`` wrote.

    Raises:
        StoreError: if it is no JSON object, or holds NaN or an infinite number.
    """
    try:
        data = _parsed(text)
    except (ValueError, TypeError, RecursionError, AttributeError) as error:
        shown = repr(text)[:200]
        raise StoreError(f"the data of a stored event is not JSON ({error}): {shown}") from error
    if not isinstance(data, dict):
        raise StoreError(f"the data of a stored event is not a JSON object: {text!r:.200}")
    return data


def _parsed(text: str | bytes) -> Any:
    """JSON by pydantic's parser, which is faster; what it refuses, json judges."""
    try:
        data = from_json(text, allow_inf_nan=False)
    except (ValueError, TypeError):  # no JSON, or surrogates that stand alone
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    _require_finite((data,))
    return data


def _require_finite(values: Iterable[Any]) -> None:
    """Refuse numbers as 1e999, which are read as infinite."""
    for value in values:
        kind = type(value)
        if kind is float:
            if not isfinite(value):
                raise ValueError(f"{value} is not a finite number")
        elif kind is dict:
            _require_finite(value.values())
        elif kind is list:
            _require_finite(value)


def chosen(kinds: Collection[str] | None) -> frozenset[str] | None:
    """Kinds to read, as a set.

    Raises:
        ConfigError: if ``kinds`` is one string, which would be taken letter by letter.
    """
    if isinstance(kinds, str):
        raise ConfigError(f"kinds is the string {kinds!r}; give a collection: [{kinds!r}]")
    return None if kinds is None else frozenset(kinds)


def same(event: Event, other: Event) -> bool:
    """Test whether two events of one id say the same, letter by letter, whoever told them."""
    names = (event.kind, event.scope) == (other.kind, other.scope)
    return names and encode(event.data) == encode(other.data)


def conflict(address: object, op_ids: Collection[str]) -> ConflictError:
    """Error for events that a store has with other content."""
    return ConflictError(
        f"store {address} has other content under {len(op_ids)} of the ids, as "
        f"{next(iter(op_ids))!r}; what was told first holds",
        op_ids,
    )


def require_no_hole(address: object, following: int, event: Event) -> int:
    """Number after a numbered event.

    Args:
        address: The store, for the message.
        following: Number that is the next of its writer.
        event: The event.

    Raises:
        HoleError: if lower numbers are missing.
    """
    if first_number(event) > following:
        raise HoleError(
            f"store {address} has the events of {event.writer!r} up to {following - 1}, and number "
            f"{event.number} came; those between are missing",
            event.writer,
            following,
        )
    return max(following, event.number + 1)


def _checked(event: Event) -> Event:
    if type(event.data) is _Copy:
        return event
    op_id, kind, scope, run = event.op_id, event.kind, event.scope, event.run
    for name in (op_id, kind, scope, run, event.writer):
        if not (isinstance(name, str) and name.isascii()):
            _check_names(event)
    if not op_id:
        raise ConfigError(
            f"an event of kind {kind!r} has an empty op_id; give each event its own, "
            "so that a repeated write counts once"
        )
    if type(event.data) is not dict and not isinstance(event.data, Mapping):
        raise ConfigError(f"event {op_id!r}: data is {event.data!r}; it must be a mapping")
    try:
        data = _Copy(_copied_mapping(event.data, "data"))
    except ConfigError as error:
        raise ConfigError(f"event {op_id!r} of kind {kind!r}: {error}") from None
    except RecursionError:
        raise ConfigError(
            f"event {op_id!r} of kind {kind!r}: data is nested too deeply, or in itself"
        ) from None
    return Event(op_id, kind, scope, run, data, event.schema, event.writer, event.number)


def _copied_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    # Every event of a run comes through here: plain values are told apart without a call.
    copy = {}
    for key, item in value.items():
        if type(key) is not str:
            raise ConfigError(
                f"{where} has the key {key!r}, a {type(key).__name__}; JSON keys are strings"
            )
        kind = type(item)
        if kind in _PLAIN or (kind is float and isfinite(item)):
            copy[key] = item
        else:
            copy[key] = _copy(item, f"{where}.{key}")
    return copy


def _copy(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _copied_mapping(value, where)
    if isinstance(value, list):
        return [_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> str | int | float | None:
    if type(value) in _PLAIN:
        plain: str | int | None = value
        return plain
    if isinstance(value, float):
        if isfinite(value):
            return float(value)
        raise ConfigError(f"{where} is {value!r}, which JSON cannot hold; leave it out or use null")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    raise ConfigError(
        f"{where} is {value!r}, a {type(value).__name__}; "
        "only null, true/false, numbers, strings, lists and dicts come back as they were written"
    )


def _check_names(event: Event) -> None:
    for field in ("op_id", "kind", "scope", "run", "writer"):
        name = getattr(event, field)
        what = f"event {event.op_id!r}: {field} is {name!r}"
        if not isinstance(name, str):
            raise ConfigError(f"{what}, a {type(name).__name__}; it must be a string")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{what}, which is not valid Unicode: {error}") from error
