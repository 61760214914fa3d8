"""Events as JSON: what is refused, and how the rest is written so that it comes back equal."""

import json
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from types import NoneType
from typing import Any

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event

_PLAIN = frozenset({str, int, bool, NoneType})


def checked(events: Iterable[Event]) -> list[Event]:
    """Copies of ``events`` that nobody else can change, of JSON types only.

    Raises:
        ConfigError: if JSON would not give the same back: NaN, infinity, a tuple, a key that is
            not a string, any other object. The message says where in the event it stands.
    """
    return [_checked(event) for event in events]


def copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of an event's data, so that the reader may change what it got."""
    return {key: _copy(value, key) for key, value in data.items()}


def encode(data: Mapping[str, Any]) -> str:
    """The data of a checked event as JSON, ASCII only, so that every string survives."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


def decode(text: str | bytes) -> dict[str, Any]:
    """What ``encode`` was given.

    Raises:
        StoreError: if this is no JSON object; something else has written here.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StoreError(f"the data of a stored event is not JSON ({error}): {text!r}") from error
    if not isinstance(data, dict):
        raise StoreError(f"the data of a stored event is not a JSON object: {text!r}")
    return data


def chosen(kinds: Collection[str] | None) -> frozenset[str] | None:
    """The kinds to read, as a set.

    Raises:
        ConfigError: if ``kinds`` is one string, which would be taken letter by letter.
    """
    if isinstance(kinds, str):
        raise ConfigError(f"kinds is the string {kinds!r}; give a collection: [{kinds!r}]")
    return None if kinds is None else frozenset(kinds)


def _checked(event: Event) -> Event:
    for field in ("op_id", "kind", "scope", "run"):
        name = getattr(event, field)
        if not isinstance(name, str):
            raise ConfigError(
                f"event {event.op_id!r}: {field} is {name!r}, a {type(name).__name__}; "
                "it must be a string"
            )
        if not name.isascii():
            _refuse_surrogates(name, f"event {event.op_id!r}: {field}")
    if not event.op_id:
        raise ConfigError(
            f"an event of kind {event.kind!r} has an empty op_id; give each event its own, "
            "so that a repeated write counts once"
        )
    if not isinstance(event.data, Mapping):
        raise ConfigError(f"event {event.op_id!r}: data is {event.data!r}; it must be a mapping")
    try:
        data = _copy(event.data, "data")
    except ConfigError as error:
        raise ConfigError(f"event {event.op_id!r} of kind {event.kind!r}: {error}") from None
    except RecursionError:
        raise ConfigError(
            f"event {event.op_id!r} of kind {event.kind!r}: data is nested too deeply, or in itself"
        ) from None
    return Event(event.op_id, event.kind, event.scope, event.run, data)


def _copy(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigError(
                    f"{where} has the key {key!r}, a {type(key).__name__}; JSON keys are strings"
                )
            kind = type(item)
            copy[key] = item if kind in _PLAIN else _copy(item, f"{where}.{key}")
        return copy
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


def _refuse_surrogates(name: str, what: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is {name!r}, which is not valid Unicode: {error}") from error
