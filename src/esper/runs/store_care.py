"""Care of a store: check, export, import, compact and migrate its events."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, final

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import (
    AGAIN,
    LOST,
    TOLD_ASIDE,
    Event,
    event_data,
    event_from,
    first_number,
)
from esper.records.fold import KINDS, take
from esper.records.history import History
from esper.records.state import history_data
from esper.records.validate import valid_data
from esper.stores import open_store
from esper.stores.addresses import shown
from esper.stores.base import MetricsStore, gaps
from esper.stores.files import write_whole
from esper.stores.journal import Journal

_BATCH = 500
_HEAD = "esper events"
_SETTINGS = (20, 0.9)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """State of a store.

    Attributes:
        store: Its address, without secrets.
        identity: The random name that it got when it was made.
        events: Number of events.
        scopes: Events of each scope.
        kinds: Events of each kind.
        runs: Number of runs that wrote them.
        writers: Number of writers that number their events.
        quarantined: Entries that are passed over: position or id, and why.
        missing: Events that are not there, though later ones are: writer, first and last number.
        lost: Events that are noted as lost: writer, first and last number, and why.
        unknown: Events of each kind that this version does not know; no reader looks at them.
        repeated: Events that were told again, as of one decision by two processes.
        advice: Settings of the server that let it lose events.
        damage: Damage of the file beside its entries, as of an index, that hides events.
    """

    store: str
    identity: str
    events: int
    scopes: dict[str, int]
    kinds: dict[str, int]
    runs: int
    writers: int
    quarantined: dict[str, str]
    missing: list[tuple[str, int, int]]
    lost: list[tuple[str, int, int, str]]
    unknown: dict[str, int]
    repeated: int
    advice: list[str]
    damage: list[str]

    @property
    def is_whole(self) -> bool:
        """True if nothing is missing or damaged and no entry is odd."""
        return not (self.quarantined or self.missing or self.damage)


def check(url: str) -> Found:
    """Read all of a store, and find what is odd or missing.

    Raises:
        ConfigError: if the URL names no store.
        StoreError: if it cannot be read.
    """
    scopes, kinds = Counter[str](), Counter[str]()
    told: dict[str, list[tuple[int, int]]] = {}
    runs = set[tuple[str, str]]()
    lost, odd = list[tuple[str, int, int, str]](), dict[str, str]()
    with open_store(url, read_only=True) as store:
        for position, event in store.read():
            scopes[event.scope] += 1
            kinds[event.kind] += 1
            runs.add((event.scope, event.run))
            if event.number >= 0:
                told.setdefault(event.writer, []).append((first_number(event), event.number))
            if event.kind == LOST:
                why = str(event.data.get("why", ""))
                lost.append((event.writer, first_number(event), event.number, why))
            if event.kind in KINDS and not (event.kind == "graft" and event.schema == 0):
                try:
                    valid_data(event)
                except StoreError as error:
                    odd[position] = str(error)
        return Found(
            store=shown(url),
            identity=store.identity,
            events=scopes.total(),
            scopes=dict(scopes),
            kinds=dict(kinds),
            runs=len(runs),
            writers=len(told),
            quarantined={**store.quarantined, **odd},
            missing=[
                (writer, *gap)
                for writer, found in told.items()
                for gap in gaps(found, max(last for _, last in found) + 1)
            ],
            lost=lost,
            unknown={
                kind: count
                for kind, count in sorted(kinds.items())
                if kind not in KINDS and kind not in TOLD_ASIDE
            },
            repeated=kinds[AGAIN],
            advice=store.advice(),
            damage=store.faults(),
        )


def export(url: str, path: Path, *, replace: bool = False) -> int:
    """Write all events of a store into a file, one a line, and return how many.

    Raises:
        ConfigError: if the URL names no store, or there is such a file and it is not to be
            replaced.
        StoreError: if it cannot be read.
        OSError: if the file cannot be written.
    """
    if path.exists() and not replace:
        raise ConfigError(f"there is a file {path} already; name another, or give --replace")
    with open_store(url, read_only=True) as store:
        lines = [json.dumps(event_data(event)) for _, event in store.read()]
        head = {"file": _HEAD, "schema": 1, "identity": store.identity, "events": len(lines)}
    body = "".join(f"{line}\n" for line in lines)
    head["checksum"] = blake2b(body.encode(), digest_size=16).hexdigest()
    write_whole(path, f"{json.dumps(head)}\n{body}".encode())
    return len(lines)


def take_in(path: Path, url: str) -> tuple[int, int]:
    """Append the events of an exported file to a store; those that it has are left out.

    Returns:
        Events in the file, and how many of them are new.

    Raises:
        ConfigError: if the URL names no store.
        StoreError: if the file is damaged or the store cannot be written.
    """
    try:
        first, _, body = path.read_text(encoding="utf-8").partition("\n")
        head = json.loads(first)
        whole = (
            head["file"] == _HEAD
            and head["checksum"] == blake2b(body.encode(), digest_size=16).hexdigest()
        )
        events = [event_from(json.loads(line)) for line in body.splitlines()] if whole else []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is no file of events, or damaged: {error!r:.200}") from error
    if not whole:
        raise StoreError(f"{path} is no file of events, or damaged: its checksum is wrong")
    with open_store(url) as store:
        return len(events), _pour(events, store)


def migrate(source: str, target: str) -> tuple[int, int, bool | None]:
    """Copy all events of a store into another; those that it has are left out.

    Returns:
        Events in the source, how many of them are new, and whether the histories of all scopes are
        the same in both, bit for bit; ``None`` if the target had others before.

    Raises:
        ConfigError: if a URL names no store.
        StoreError: if the source cannot be read or the target written.
    """
    with open_store(source, read_only=True) as old, open_store(target) as new:
        had = next(new.read(), None) is not None
        count = 0

        def counted() -> Iterator[Event]:
            nonlocal count
            for _, event in old.read():
                count += 1
                yield event

        added = _pour(counted(), new)
        same = None if had else _histories(old) == _histories(new)
    return count, added, same


def compact(url: str) -> None:
    """Give back room that a store does not need.

    Raises:
        ConfigError: if the URL names no store.
        StoreError: if there is none, it holds nothing, or it cannot be written.
    """
    with open_store(url, read_only=True) as store:  # a name mistyped must not make a store
        if next(store.read(), None) is None:
            raise StoreError(
                f"store {shown(url)} has no events; give the store that the runs wrote to"
            )
    with open_store(url) as store:
        store.compact()


def _pour(events: Iterable[Event], store: MetricsStore) -> int:
    """Append events in batches; how many are new. What the source lacks is noted as lost."""
    before = sum(1 for _ in store.read())
    journal, events = Journal(store), iter(events)
    while batch := list(islice(events, _BATCH)):
        journal.append_all(batch)
        journal.flush()
    return sum(1 for _ in store.read()) - before


def _histories(store: MetricsStore) -> dict[str, Any]:
    found: dict[str, History] = {}
    for _, event in store.read(kinds=KINDS):
        if event.scope not in found:
            found[event.scope] = History(*_SETTINGS)
        take(found[event.scope], event)
    return {scope: json.dumps(history_data(history)) for scope, history in found.items()}
