"""Serialise a history to JSON and restore it exactly.

For runs without a store, and for snapshots; with a store, the log is the state.
This file reads private attributes of records, so that records stay small.
"""

from array import array
from collections import deque
from collections.abc import Mapping
from math import isnan, nan
from typing import Any

from esper.contracts.errors import ConfigError
from esper.contracts.schema import require_schema
from esper.contracts.selection import decision_data, decision_from
from esper.records.history import History
from esper.records.layer import LayerKnowledge, LayerRecord
from esper.records.seed import Ring, SeedRecord

SCHEMA = 1
"""Version of the state; 0, before 0.1.0, cannot be read."""

_PLAIN = (
    "_weight",
    "blueprint",
    "count",
    "failed_attempts",
    "kernel_id",
    "last_activation_epoch",
    "m2",
    "mean",
    "outcomes",
    "recent",
    "seed_idx",
    "successful_grafts",
    "total_activations",
)


def history_data(history: History) -> dict[str, Any]:
    """Complete state of a history, as JSON data."""
    return {
        "schema": SCHEMA,
        "window_size": history.window_size,
        "decay_factor": history.decay_factor,
        "writers": sorted(history.writers),
        "open": [decision_data(decision) for decision in history.open.values()],
        "late": list(history.late),
        "quarantined": dict(history.quarantined),
        "layers": [_layer_data(layer) for layer in history.layers.values()],
    }


def history_from(data: Mapping[str, Any], old: History) -> History:
    """History restored from `history_data`.

    Args:
        data: What it wrote.
        old: A history of the same settings, followed by a strategy of the same kind and settings
            as then.

    Raises:
        ConfigError: if ``data`` is damaged, of another schema or settings, or belongs to another
            strategy.
    """
    require_schema(data, "tracker", SCHEMA)
    try:
        history = History(data["window_size"], data["decay_factor"], old.begin, old.own)
        for name in ("window_size", "decay_factor"):
            if getattr(history, name) != getattr(old, name):
                raise ConfigError(
                    f"the state has {name} {getattr(history, name)}, this tracker "
                    f"{getattr(old, name)}; make it with the same"
                )
        history.writers.update(data["writers"])
        for one in data["open"]:
            decision = decision_from(one)
            history.open[decision.decision_id] = decision
        history.late.extend(data["late"])
        history.quarantined.update(data.get("quarantined", {}))
        for one in data["layers"]:
            _fill(history.layer(one["name"]), one)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"the state of a tracker cannot be read ({error!r}); it is damaged, or was written by "
            "another version of Esper"
        ) from error
    return history


def _layer_data(layer: LayerRecord) -> dict[str, Any]:
    knowledge = layer.seeds.knowledge
    return {
        "name": layer.name,
        "choices": layer.choices,
        "bound": sorted(layer.bindings()),
        "seeds": [_record_data(record) for record in layer.seeds.values()],
        "aside": [_record_data(record) for record in (layer._aside or {}).values()],
        "elsewhere": [
            [at, record.seed_idx, record.blueprint, decision_id]
            for at, record, decision_id in layer._elsewhere or ()
        ],
        "sums": layer.seeds.sums.state_dict(),
        "knowledge": None if knowledge is None else knowledge.state_dict(),
    }


def _fill(layer: LayerRecord, data: Mapping[str, Any]) -> None:
    layer.choices = data["choices"]
    for one in data["seeds"]:
        record = _record_from(layer.name, one)
        layer.seeds[record.seed_idx] = record
    aside = [_record_from(layer.name, one) for one in data["aside"]]
    layer._aside = {(record.seed_idx, record.blueprint): record for record in aside} or None
    for seed_idx in data["bound"]:
        layer.bind(seed_idx, layer.seeds[seed_idx].blueprint)
    elsewhere = [
        (at, layer.under(seed_idx, blueprint), decision_id)
        for at, seed_idx, blueprint, decision_id in data.get("elsewhere", ())
    ]
    layer._elsewhere = deque(elsewhere) if elsewhere else None
    layer.seeds.sums.load_state_dict(data["sums"])
    _teach(layer.seeds.knowledge, data["knowledge"])


def _teach(knowledge: LayerKnowledge | None, data: Mapping[str, Any] | None) -> None:
    if (knowledge is None) != (data is None):
        had, has = ("nothing", "more") if data is None else ("more", "nothing")
        raise ConfigError(
            f"the state is of a strategy that learns {had} than the records, and this tracker "
            f"follows one that learns {has}; make the selector with the same strategy first"
        )
    if knowledge is not None and data is not None:
        knowledge.load_state_dict(data)


def _record_data(record: SeedRecord) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        "open": list(record.open),
        "measured": _ring_data(record._measured),
        "timed": _ring_data(record._timed),
    }


def _record_from(layer_name: str, data: Mapping[str, Any]) -> SeedRecord:
    record = SeedRecord(layer_name, data["seed_idx"], data["blueprint"])
    for name in _PLAIN:
        setattr(record, name, data[name])
    record.open = tuple(data["open"])
    record._measured = _ring_from(data["measured"])
    record._timed = _ring_from(data["timed"])
    return record


def _ring_data(ring: Ring | None) -> dict[str, Any] | None:
    if ring is None:
        return None
    cells = [None if isnan(value) else value for value in ring._cells]
    return {"size": ring.size, "width": ring.width, "cells": cells, "oldest": ring._oldest}


def _ring_from(data: Mapping[str, Any] | None) -> Ring | None:
    if data is None:
        return None
    ring = Ring(data["size"], data["width"])
    ring._cells = array("d", [nan if value is None else value for value in data["cells"]])
    ring._oldest = data["oldest"]
    return ring
