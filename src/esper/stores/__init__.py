"""Stores: append-only logs of events, in memory, a SQLite file, on Redis or behind a service."""

import logging
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from esper.contracts.errors import ConfigError, unknown_name
from esper.registry import Registry
from esper.stores.addresses import shown, with_secrets
from esper.stores.base import MetricsStore

logger = logging.getLogger(__name__)

__all__ = ["STORES", "MetricsStore", "open_store", "opened"]

if TYPE_CHECKING:
    from esper.stores.journal import Journal

STORES: Registry[MetricsStore] = Registry(
    "store",
    {
        "memory": "esper.stores.memory:MemoryStore",
        "sqlite": "esper.stores.sqlite:SqliteStore",
        "redis": "esper.stores.redis:RedisStore",
        "http": "esper.stores.http:HttpStore",
    },
    group="esper.stores",
)

_ALIASES = {"rediss": "redis", "unix": "redis", "https": "http"}
_FORMS = "memory:, sqlite:///file.db, sqlite:////absolute/file.db, redis://host:6379/0, http://host:8000/main"


def open_store(url: str, *, read_only: bool = False) -> MetricsStore:
    """Open the store at a URL, with the password that belongs to it (`stores.addresses`).

    Settings of a server that let it lose events are logged as warnings.

    Args:
        url: ``memory:``; ``sqlite:///history.db`` (relative to the working directory) or
            ``sqlite:////var/history.db`` (absolute), made if missing; ``redis://host:port/db``,
            ``rediss://`` (TLS) or ``unix://path.sock?db=0``; ``http://host:port/project`` or
            ``https://``, a service that `esper serve` offers. A store added by another package
            has its name as scheme.
        read_only: Only read it; a file may then stand where nothing can be written.

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
    if not url.isprintable():
        raise ConfigError(f"the store URL {shown(url)!r} holds signs that cannot be printed")
    made = STORES.load(_ALIASES.get(scheme, scheme))
    if read_only:
        return made.reader(with_secrets(url))
    store = made.from_url(with_secrets(url))
    for line in store.advice():
        logger.warning("%s", line)
    return store


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
    if not hasattr(redis_client, "register_script"):
        raise ConfigError(
            f"redis_client is {redis_client!r}; give a client of redis-py, or another place as "
            "store='sqlite:///history.db'"
        )
    from esper.stores.redis import RedisStore  # noqa: PLC0415 (redis is an extra)

    return RedisStore(redis_client)


def _not_a_url(url: str) -> str:
    if not url:
        return f"the store URL is empty; write one of: {_FORMS}"
    return (
        f"{shown(url)!r} is not a store URL; did you mean 'sqlite:///{PurePath(url).as_posix()}'? "
        f"Known: {_FORMS}"
    )
