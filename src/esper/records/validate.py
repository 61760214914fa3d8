"""Check the data of a stored event before it is folded, since anyone may have written it."""

from collections.abc import Callable, Mapping
from typing import Any

from esper.contracts.errors import StoreError
from esper.contracts.events import SCHEMA, Event
from esper.contracts.performance import LARGEST
from esper.contracts.selection import MOST_SEEDS

Test = Callable[[Any], bool]

_LARGEST_WHOLE = 2**53
_LONGEST_NAME = 10_000


def require_valid(event: Event) -> None:
    """Refuse an event of the history that does not hold what its kind needs.

    Unknown fields are tolerated.

    Raises:
        StoreError: naming the event, and the field that is missing or wrong.
    """
    if event.schema > SCHEMA:
        raise StoreError(
            f"event {event.op_id!r} has schema {event.schema}, this version reads up to {SCHEMA}; "
            "upgrade with: pip install -U esper-morph"
        )
    data = event.data
    wrong = _wrong(data, _PLACE, _NONE) or _wrong(data, *_OF_KIND.get(event.kind, _NOTHING))
    if event.kind == "decision" and not wrong and data["decision"]:  # else it was only counted
        wrong = _wrong(data, _CHOICE, _MORE_OF_CHOICE)
    if wrong:
        raise StoreError(
            f"event {event.op_id!r} of kind {event.kind!r} cannot be read: "
            f"{wrong} is {data.get(wrong, 'missing')!r:.100}; it was written by another version of "
            "Esper, by another program, or damaged"
        )


def _wrong(data: Mapping[str, Any], required: Mapping[str, Test], more: Mapping[str, Test]) -> str:
    """Name of the first field that is wrong; empty if none is."""
    for name, test in required.items():
        if name not in data or not test(data[name]):
            return name
    for name, test in more.items():
        if data.get(name) is not None and not test(data[name]):
            return name
    return ""


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_SEEDS


def _is_epoch(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < _LARGEST_WHOLE


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -LARGEST < value < LARGEST  # type: ignore[operator]  # it is one


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_score(value: object) -> bool:
    return value is None or _is_number(value)


def _is_chance(value: object) -> bool:
    return isinstance(value, int | float) and 0.0 <= value <= 1.0 + 1e-6


def _is_list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _is_by_seed(test: Test) -> Test:
    return lambda value: (
        isinstance(value, Mapping)
        and all(
            key.isascii() and key.isdecimal() and len(key) < 9 and test(one)
            for key, one in value.items()
        )
    )


def _is_random_key(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3


def _is_part(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"test", "arm", "unit"}
        and all(map(_is_name, value.values()))
    )


_NONE: Mapping[str, Test] = {}
_NOTHING = (_NONE, _NONE)
_PLACE = {"decision": _is_name, "layer": _is_name, "seed": _is_seed, "blueprint": _is_name}
_TIMES = {"latency_ms": _is_number, "memory_mb": _is_number}
_DELTAS = {"accuracy_delta": _is_number, "loss_delta": _is_number}
_GAINS = dict.fromkeys(("gain", "stderr", "mean", "noise"), _is_number)
_CHOICE = {
    "strategy": _is_name,
    "reason": _is_name,
    "score": _is_score,
    "scores": _is_by_seed(_is_score),
    "propensity": _is_chance,
    "fallback": _is_flag,
    "alternatives": _is_list_of(_is_seed),
    "random_key": _is_random_key,
}
_MORE_OF_CHOICE = {
    "propensities": _is_by_seed(_is_chance),
    "propensity_error": _is_number,
    "features": _is_list_of(_is_number),
    "layer_type": _is_name,
    "audition": _is_name,
    "depth": _is_number,
    "ab": _is_part,
}
_OF_KIND: Mapping[str, tuple[Mapping[str, Test], Mapping[str, Test]]] = {
    "decision": ({"epoch": _is_epoch}, _NONE),
    "outcome": ({"reward": _is_number}, _TIMES | _DELTAS | {"kernel": _is_name}),
    "audition": ({"point": _is_name, "cohort": _is_epoch} | _GAINS, _NONE),
    "graft": ({"kept": _is_flag}, _NONE),
    "verdict": ({"kept": _is_flag}, _NONE),
    "timing": (_NONE, _TIMES),
}
