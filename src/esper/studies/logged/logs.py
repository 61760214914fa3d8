"""Event logs to study: of runs in their folders, or of everything in a store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from esper.contracts.config import Performance
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.runs import run_reader as lookup
from esper.runs import store_address as addresses


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One history: all events of a scope, in order.

    Attributes:
        name: What it is called in messages.
        events: The events; those of other runs belong to what was known.
        runs: The runs that are asked about; ``None`` for all.
        performance: How the history of a seed was summed up when choices were made.
    """

    name: str
    events: Sequence[Event]
    runs: frozenset[str] | None = None
    performance: Performance = field(default_factory=Performance)


def of_runs(folder: Path, names: Sequence[str]) -> list[Log]:
    """The logs of runs; runs that shared a store and a scope learnt from one history.

    Raises:
        ConfigError: if there is no such run.
        StoreError: if a run or its log cannot be read.
    """
    logs: list[Log] = []
    shared: dict[tuple[str, str], list[lookup.Run]] = {}
    for name in dict.fromkeys(names):
        run = lookup.read_run(folder, name)
        if run.spec["store"]:
            shared.setdefault((run.spec["store"], run.spec["task"]), []).append(run)
        else:
            logs.append(Log(name=name, events=run.events(), performance=_performance(run)))
    for (url, scope), runs in shared.items():
        logs.append(
            Log(
                name=" ".join(run.folder.name for run in runs),
                events=addresses.read(url, scope),
                runs=frozenset(run.spec["run"] for run in runs),
                performance=_performance(runs[0]),
            )
        )
    return logs


def of_store(url: str, scope: str | None) -> list[Log]:
    """The logs in a store, one for each scope.

    Args:
        url: As ``open_store`` takes it, or the path of a SQLite file.
        scope: Only this one; ``None`` for all.

    Raises:
        ConfigError: if it is no store, or has nothing of that scope.
        StoreError: if it cannot be read.
    """
    by_scope: dict[str, list[Event]] = {}
    for event in addresses.read(url, None):
        by_scope.setdefault(event.scope, []).append(event)
    shown = addresses.without_password(url)
    if not by_scope:
        raise ConfigError(f"{shown} is empty: no event was ever written to it")
    if scope is not None and scope not in by_scope:
        known = ", ".join(repr(name) for name in by_scope)
        raise ConfigError(f"{shown} has nothing of scope {scope!r}; it has {known}")
    return [
        Log(name=name or shown, events=events)
        for name, events in by_scope.items()
        if scope in (None, name)
    ]


def _performance(run: lookup.Run) -> Performance:
    return Performance.model_validate(run.spec["config"]["seed_selection"]["performance"])
