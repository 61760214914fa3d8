"""Event logs for studies, read from the folders of runs or from a store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from esper.contracts.config import Performance
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.runs import run_reader, store_address
from esper.stores.addresses import shown


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Events of one scope, in order.

    Attributes:
        name: Name for messages.
        events: The events; those of other runs are part of the history.
        runs: Runs whose decisions are studied; ``None`` for all.
        performance: Settings of the tracker when the decisions were made.
    """

    name: str
    events: Sequence[Event]
    runs: frozenset[str] | None = None
    performance: Performance = field(default_factory=Performance)


def read_runs(folder: Path, names: Sequence[str]) -> list[Log]:
    """Read the logs of runs; runs that share a store and a scope are one log.

    Raises:
        ConfigError: if there is no such run.
        StoreError: if a run or its log cannot be read.
    """
    logs: list[Log] = []
    shared: dict[tuple[str, str], list[run_reader.Run]] = {}
    for name in dict.fromkeys(names):
        run = run_reader.read_run(folder, name)
        if run.spec["store"]:
            shared.setdefault((run.spec["store"], run.spec["task"]), []).append(run)
        else:
            logs.append(Log(name=name, events=run.events(), performance=_performance(run)))
    for (url, scope), runs in shared.items():
        logs.append(
            Log(
                name=" ".join(run.folder.name for run in runs),
                events=store_address.read(url, scope),
                runs=frozenset(run.spec["run"] for run in runs),
                performance=_performance(runs[0]),
            )
        )
    return logs


def read_store(url: str, scope: str | None) -> list[Log]:
    """Read the logs in a store, one for each scope.

    Args:
        url: As ``open_store`` takes it, or the path of a SQLite file.
        scope: Only this one; ``None`` for all.

    Raises:
        ConfigError: if it is no store, or has nothing of that scope.
        StoreError: if it cannot be read.
    """
    by_scope: dict[str, list[Event]] = {}
    for event in store_address.read(url, None):
        by_scope.setdefault(event.scope, []).append(event)
    place = shown(url)
    if not by_scope:
        raise ConfigError(f"{place} is empty: no event was ever written to it")
    if scope is not None and scope not in by_scope:
        known = ", ".join(repr(name) for name in by_scope)
        raise ConfigError(f"{place} has nothing of scope {scope!r}; it has {known}")
    return [
        Log(name=name or place, events=events)
        for name, events in by_scope.items()
        if scope in (None, name)
    ]


def _performance(run: run_reader.Run) -> Performance:
    return Performance.model_validate(run.spec["config"]["seed_selection"]["performance"])
