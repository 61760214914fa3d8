"""Facts that events of a history have in common: the seed they are about, what was measured."""

from operator import attrgetter
from typing import Any

from esper.contracts.performance import PerformanceDelta
from esper.records.seed import SeedRecord

_MEASUREMENTS = ("accuracy_delta", "loss_delta", "latency_ms", "memory_mb", "reward_stderr", "rent")
_measured = attrgetter(*_MEASUREMENTS)


def place_data(record: SeedRecord, decision_id: str) -> dict[str, Any]:
    """The seed and the decision that an event is about, as JSON data."""
    return {
        "decision": decision_id,
        "layer": record.layer_name,
        "seed": record.seed_idx,
        "blueprint": record.blueprint,
    }


def add_measured(data: dict[str, Any], delta: PerformanceDelta) -> None:
    """Add a measurement to an event's data, its reward apart, without what was not measured."""
    for name, value in zip(_MEASUREMENTS, _measured(delta), strict=True):
        if value is not None:
            data[name] = float(value)
