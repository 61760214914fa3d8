"""Fold events into a history: the way from a written event to the records.

Reading a whole log through `fold` gives the same records as a run that wrote it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from esper.contracts.audition import Contrast
from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import decision_from
from esper.records.history import History, writer_of
from esper.records.seed import SeedRecord
from esper.records.validate import valid_data


def fold(history: History, event: Event) -> None:
    """Apply a valid event to ``history``; kinds outside `KINDS` change nothing.

    Deterministic: depends on its arguments alone.
    """
    apply = _FOLDS.get(event.kind)
    if apply is None or (event.kind == "graft" and event.schema == 0):  # then there is a verdict
        return
    apply(history, event.data)


def take(history: History, event: Event) -> None:
    """`fold` an event that was read from a store; one that cannot be folded is quarantined."""
    if event.kind not in _FOLDS or (event.kind == "graft" and event.schema == 0):
        return
    try:
        data = valid_data(event)
    except StoreError as error:
        history.quarantine(event.op_id, str(error))
        return
    if data["decision"] in history.told and event.kind in ANSWERS:
        return  # this process told it first, or at the same moment
    try:
        _FOLDS[event.kind](history, data)
    except _FAULTS as error:
        why = f"event {event.op_id!r} of kind {event.kind!r} cannot be learnt from: {error!r}"
        history.quarantine(event.op_id, why)


def _decision(history: History, data: Mapping[str, Any]) -> None:
    decision_id, layer_name = data["decision"], data["layer"]
    layer = history.layer(layer_name)
    layer.follow(data["seed"], data["blueprint"])
    record = layer.under(data["seed"], data["blueprint"])
    history.choose(layer, record, decision_id, data["epoch"])
    if history.begin is not None and decision_id:
        history.open[decision_id] = decision_from(data)
    if decision_id:
        writer = writer_of(decision_id, layer_name)
        history.writers.add(writer)
        if writer != history.own:
            layer.decided_elsewhere(record, decision_id)


def _outcome(history: History, data: Mapping[str, Any]) -> None:
    record = _record(history, data)
    record.close(data["decision"])
    if data.get("kernel") is not None:
        record.kernel_id = data["kernel"]
    delta = PerformanceDelta(
        data.get("accuracy_delta"),
        data.get("loss_delta"),
        data.get("latency_ms"),
        data.get("memory_mb"),
        reward_stderr=data.get("reward_stderr"),
    )
    history.learn(record, data["decision"], data["reward"], delta)


def _audition(history: History, data: Mapping[str, Any]) -> None:
    record, decision = _record(history, data), history.open.get(data["decision"])
    contrast = Contrast(
        point=data["point"],
        gain=data["gain"],
        stderr=data["stderr"],
        mean=data["mean"],
        noise=data["noise"],
        cohort=data["cohort"],
    )
    history.teach_audition(record, contrast, decision)


def _failure(history: History, data: Mapping[str, Any]) -> None:
    record = _record(history, data)
    record.close(data["decision"])
    record.failed_attempts += 1
    history.learn(record, data["decision"], 0.0, PerformanceDelta())


def _withdrawal(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).close(data["decision"])
    history.open.pop(data["decision"], None)


def _end(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).successful_grafts += bool(data["kept"])


def _timing(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).time(data.get("latency_ms"), data.get("memory_mb"), history.window_size)


def _record(history: History, data: Mapping[str, Any]) -> SeedRecord:
    return history.layer(data["layer"]).under(data["seed"], data["blueprint"])


_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of a strategy that an event of another writer does not suit."""

_FOLDS: dict[str, Callable[[History, Mapping[str, Any]], None]] = {
    "decision": _decision,
    "outcome": _outcome,
    "audition": _audition,
    "failure": _failure,
    "withdrawal": _withdrawal,
    "graft": _end,
    "verdict": _end,  # of schema 0
    "timing": _timing,
}

WITHDRAWAL = "withdrawal"
"""Kind of what says that no outcome of a decision is awaited; one that comes still counts."""

ANSWERS = frozenset(("outcome", "failure", WITHDRAWAL))
"""Kinds of what came of a decision; each decision has one outcome or failure at most."""

KINDS = tuple(_FOLDS)
"""Kinds of event that make up a history."""
