"""Schema of the data of each kind of event, checked before it is folded: anyone may write them.

JSON has one kind of number: what is measured becomes a float here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from esper.contracts.errors import StoreError
from esper.contracts.events import SCHEMA, Event
from esper.contracts.performance import LARGEST
from esper.contracts.selection import MOST_SEEDS

_Name = Annotated[str, Field(max_length=10_000)]
_Seed = Annotated[int, Field(ge=0, lt=MOST_SEEDS)]
_Count = Annotated[int, Field(ge=-1, lt=2**53)]
_Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]
_Size = Annotated[float, Field(ge=0.0, lt=LARGEST)]
_Chance = Annotated[float, Field(ge=0.0, le=1.0 + 1e-6)]
_AsText = Annotated[str, Field(pattern="^[0-9]{1,8}$")]
"""A seed as a key of a JSON object."""

_STRICT = with_config(ConfigDict(strict=True))  # unknown fields are tolerated


@_STRICT
class _Place(TypedDict):
    decision: _Name
    layer: _Name
    seed: _Seed
    blueprint: _Name


@_STRICT
class _Timing(_Place):
    latency_ms: NotRequired[_Number | None]
    memory_mb: NotRequired[_Number | None]


@_STRICT
class _Outcome(_Timing):
    reward: _Number
    reward_stderr: NotRequired[_Number | None]
    accuracy_delta: NotRequired[_Number | None]
    loss_delta: NotRequired[_Number | None]
    kernel: NotRequired[_Name | None]


@_STRICT
class _Audition(_Place):
    point: _Name
    cohort: _Count
    gain: _Number
    stderr: _Number
    mean: _Number
    noise: _Number


@_STRICT
class _End(_Place):
    kept: bool


@_STRICT
class _Counted(_Place):
    epoch: _Count


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Part(TypedDict):
    test: _Name
    arm: _Name
    unit: _Name


@_STRICT
class _Choice(_Place):
    epoch: Annotated[int, Field(ge=0, lt=2**53)]
    strategy: _Name
    reason: InstanceOf[str]
    score: _Number | None
    scores: dict[_AsText, _Number | None]
    propensity: _Chance
    fallback: bool
    alternatives: list[_Seed]
    random_key: Annotated[list[Any], Field(min_length=3, max_length=3)]
    propensities: NotRequired[dict[_AsText, _Chance] | None]
    propensity_error: NotRequired[_Number]
    features: NotRequired[list[_Number]]
    layer_type: NotRequired[_Name]
    audition: NotRequired[_Name]
    depth: NotRequired[_Number | None]
    promise: NotRequired[_Size | None]
    ab: NotRequired[_Part | None]


_CHOICE = TypeAdapter(_Choice)
_PLACE = TypeAdapter(_Place)
_SCHEMAS: Mapping[str, TypeAdapter[Any]] = {
    "decision": TypeAdapter(_Counted),
    "outcome": TypeAdapter(_Outcome),
    "audition": TypeAdapter(_Audition),
    "graft": TypeAdapter(_End),
    "verdict": TypeAdapter(_End),
    "timing": TypeAdapter(_Timing),
}


def valid_data(event: Event) -> dict[str, Any]:
    """Data of an event of the history, without fields that are not known.

    Raises:
        StoreError: naming the event, and the field that is missing or wrong.
    """
    if event.schema > SCHEMA:
        raise StoreError(
            f"event {event.op_id!r} has schema {event.schema}, this version reads up to {SCHEMA}; "
            "upgrade with: pip install -U esper-morph"
        )
    schema = _SCHEMAS.get(event.kind, _PLACE)
    if event.kind == "decision" and event.data.get("decision"):  # else it was only counted
        schema = _CHOICE
    try:
        data: dict[str, Any] = schema.validate_python(event.data)
    except ValidationError as error:
        (wrong, *_) = error.errors(include_url=False, include_input=False)[0]["loc"]
        raise _unreadable(event, str(wrong)) from None
    chances = data.get("propensities")
    if chances is not None and str(data["seed"]) not in chances:
        raise _unreadable(event, "propensities")
    return data


def _unreadable(event: Event, wrong: str) -> StoreError:
    return StoreError(
        f"event {event.op_id!r} of kind {event.kind!r} cannot be read: "
        f"{wrong} is {event.data.get(wrong, 'missing')!r:.100}; it was written by another "
        "version of Esper, by another program, or damaged"
    )
