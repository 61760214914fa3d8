"""Runs of users' own loops, read from the store that they were given; without torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.events import AGAIN, CLOCK, LOST, Event
from esper.runs.store_address import url_of
from esper.stores import open_store

_SUMMED = ("run", "epoch", "graft", "verdict", "end", CLOCK)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRun:
    """Summary of a run in a store.

    Attributes:
        scope: Scope of its history.
        run: Its name.
        model: Class of the model; empty in logs of 0.1.0 and before.
        seed: Run seed, if it is told.
        epochs: Epochs that ended.
        kept: Grafts whose kernels were kept.
        culled: Grafts that ended otherwise.
        end: ``"finished"`` or ``"closed"``; empty while it goes on, and if it was killed.
        last_seen: When its last epoch or its end was told, in seconds since 1970; ``None`` if that
            was not told.
    """

    scope: str
    run: str
    model: str = ""
    seed: int | None = None
    epochs: int = 0
    kept: int = 0
    culled: int = 0
    end: str = ""
    last_seen: float | None = None


def list_runs(store: str, scope: str | None = None) -> list[OwnRun]:
    """Summarise the runs of a store, in the order in which they began.

    Raises:
        ConfigError: if the address names no store.
        StoreError: if it cannot be read.
    """
    found: dict[tuple[str, str], list[Event]] = {}
    with open_store(url_of(store), read_only=True) as opened:
        for _, event in opened.read(scope=scope, kinds=_SUMMED):
            if event.kind != "graft" or event.schema > 0:  # in schema 0 there is a verdict too
                found.setdefault((event.scope, event.run), []).append(event)
    runs = [_summary(*name, events) for name, events in found.items()]
    return [run for run in runs if run.epochs]


def read_run(store: str, scope: str | None, run: str | None) -> tuple[OwnRun, list[Event]]:
    """The run of a store with this name, by default the latest, and its log.

    Raises:
        ConfigError: if there is none, or several scopes have one of this name.
        StoreError: if the store cannot be read.
    """
    runs = list_runs(store, scope)
    if not runs:
        where = "" if scope is None else f" of scope {scope!r}"
        raise ConfigError(
            f"the store has no run{where} whose epochs were told; give Tamiyo(store=...) this store"
        )
    named = [one for one in runs if run in (None, one.run)]
    if not named:
        raise ConfigError(unknown_name("run", run or "", [one.run for one in runs]))
    if run is not None and len(named) > 1:
        scopes = ", ".join(one.scope for one in named)
        raise ConfigError(f"run {run!r} is in several scopes, {scopes}; choose one by --scope")
    chosen = named[-1]
    with open_store(url_of(store), read_only=True) as opened:
        log = [event for _, event in opened.read(scope=chosen.scope, run=chosen.run)]
    return chosen, [event for event in log if event.kind not in (AGAIN, LOST)]


def _summary(scope: str, run: str, events: Iterable[Event]) -> OwnRun:
    told: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        told.setdefault(event.kind, []).append(event.data)
    facts = told.get("run", [{}])[0]
    last = max((epoch["epoch"] for epoch in told.get("epoch", ())), default=-1)
    ends = [end["how"] for end in told.get("end", ()) if end["epoch"] >= last]
    kept = [bool(end["kept"]) for kind in ("graft", "verdict") for end in told.get(kind, ())]
    return OwnRun(
        scope=scope,
        run=run,
        model=facts.get("model", ""),
        seed=facts.get("seed"),
        epochs=last + 1,
        kept=sum(kept),
        culled=len(kept) - sum(kept),
        end=ends[-1] if ends else "",
        last_seen=max((clock["time"] for clock in told.get(CLOCK, ())), default=None),
    )
