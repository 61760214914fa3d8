"""Stores: append-only logs of events, in memory, in one SQLite file or on a Redis server."""

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from esper.contracts.errors import ConfigError, unknown_name
from esper.registry import Registry
from esper.stores.base import MetricsStore

__all__ = ["STORES", "MetricsStore", "open_store", "opened"]

if TYPE_CHECKING:
    from esper.stores.journal import Journal

STORES: Registry[MetricsStore] = Registry(
    "store",
    {
        "memory": "esper.stores.memory:MemoryStore",
        "sqlite": "esper.stores.sqlite:SqliteStore",
        "redis": "esper.stores.redis:RedisStore",
    },
    group="esper.stores",
)

_ALIASES = {"rediss": "redis", "unix": "redis"}
_FORMS = "memory:, sqlite:///file.db, sqlite:////absolute/file.db, redis://host:6379/0"


def open_store(url: str) -> MetricsStore:
    """Open the store at a URL.

    Args:
        url: ``memory:``; ``sqlite:///history.db`` (relative to the working directory) or
            ``sqlite:////var/history.db`` (absolute), made if missing; ``redis://host:port/db``,
            ``rediss://`` (TLS) or ``unix://path.sock?db=0``. A store added by another package
            has its name as scheme.

    Raises:
        ConfigError: if the URL names no known store or is not complete.
        StoreError: if the place cannot be opened.

    Example:
        >>> open_store("memory:").append([])
    """
    scheme, colon, _ = url.partition(":")
    if not colon or len(scheme) == 1 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ConfigError(_not_a_url(url))
    known = [*STORES.names(), *_ALIASES]
    if scheme not in known:
        raise ConfigError(f"{unknown_name('store', scheme, known)} Write one of: {_FORMS}")
    return STORES.load(_ALIASES.get(scheme, scheme)).from_url(url)


def opened(
    store: "str | MetricsStore | Journal | None", redis_client: Any = None
) -> "MetricsStore | Journal | None":
    """The store that is meant: opened if it is named by a URL or is reached through a client.

    Args:
        store: A URL as for `open_store`, or a store.
        redis_client: A redis-py client, sync or asyncio, instead of a store.

    Raises:
        ConfigError: if both are given, or as `open_store`.
        StoreError: as `open_store`.
    """
    if redis_client is None:
        if isinstance(store, str):
            return open_store(store)
        if store is None or hasattr(store, "read"):
            return store
        raise ConfigError(f"store is {store!r}; give a URL, as 'sqlite:///history.db', or a store")
    if store is not None:
        raise ConfigError("give redis_client or store, not both; a history has one place")
    from esper.stores.redis import RedisStore  # noqa: PLC0415 (redis is an extra)

    return RedisStore(redis_client)


def _not_a_url(url: str) -> str:
    if not url:
        return f"the store URL is empty; write one of: {_FORMS}"
    return (
        f"{url!r} is not a store URL; did you mean 'sqlite:///{PurePath(url).as_posix()}'? "
        f"Known: {_FORMS}"
    )
