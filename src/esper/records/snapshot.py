"""Snapshots of a history in its store, so that opening it reads only what came after.

A snapshot is a cache: any reader may make it from the events, and it is used only for the settings
and the strategy that made it.
"""

import json
from hashlib import blake2b
from typing import Any

from esper.contracts.errors import ConfigError, StoreError
from esper.records.history import History
from esper.records.state import history_data, history_from
from esper.stores.base import MetricsStore

MEANING = 1
"""Version of what a fold, or a strategy, keeps; raise it when that changes."""

EVERY = 2000
"""Events after which a new snapshot is made."""


def snapshot_name(history: History, scope: str) -> str:
    """Name of the snapshots that ``history`` can go on from; empty if its strategy has none."""
    strategy = repr(getattr(history.begin, "__self__", history.begin))
    if " at 0x" in strategy:  # it does not say what its settings are
        return ""
    parts = (MEANING, scope, history.window_size, history.decay_factor, strategy)
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def load(store: MetricsStore, scope: str, old: History) -> tuple[History, dict[str, Any]] | None:
    """The latest snapshot: a history, and the place of its reader; ``None`` without a usable one.

    Args:
        store: Where it is.
        scope: Whose history it is.
        old: Gives settings, strategy and own name.
    """
    name = snapshot_name(old, scope)
    try:
        text = store.load_snapshot(name) if name else None
        if text is None:
            return None
        data = json.loads(text)
        if data["digest"] != _digest(data["history"], data["place"]):
            return None
        if data["identity"] != store.identity or old.own in data["place"]["seen"]:
            return None
        return history_from(data["history"], old), data["place"]
    except (ConfigError, StoreError, ValueError, KeyError, TypeError, RecursionError):
        return None  # it is only a cache


def save(store: MetricsStore, scope: str, history: History, place: dict[str, Any]) -> None:
    """Save a history that has no events of its own writer, and the place of its reader."""
    name = snapshot_name(history, scope)
    if not name or history.own in place["seen"]:
        return
    state = history_data(history)
    data = {
        "identity": store.identity,
        "digest": _digest(state, place),
        "history": state,
        "place": place,
    }
    try:
        store.save_snapshot(name, json.dumps(data))
    except (StoreError, ValueError):  # read-only, or full: the next reader may
        return


def _digest(*parts: object) -> str:
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
