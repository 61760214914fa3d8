"""Places of a service: the store of each project, opened once for each client.

A client's leases are those of its store object, so each has its own; a place in memory is one
object for all.
"""

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import final

from esper.stores import MetricsStore, open_store

_CLIENTS = 256
"""Clients whose stores stay open; one that is put out claims its leases anew."""


@final
class Places:
    """Stores by project and client.

    Args:
        urls: URL of each project's store.

    Attributes:
        shared: A store of each project that belongs to no client.

    Raises:
        ConfigError, StoreError: as `open_store`.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.urls = dict(urls)
        self.shared = {project: open_store(url) for project, url in urls.items()}
        self._open: OrderedDict[tuple[str, str], MetricsStore] = OrderedDict()
        self._lock = Lock()

    def store(self, project: str, client: str) -> MetricsStore:
        """Store of a client; the shared one for none.

        Raises:
            KeyError: if there is no such project.
            StoreError: as `open_store`.
        """
        shared = self.shared[project]
        if not client or not shared.durable:
            return shared
        with self._lock:
            found = self._open.pop((project, client), None)
            store = found or open_store(self.urls[project])
            self._open[project, client] = store
            put_out = self._open.popitem(last=False)[1] if len(self._open) > _CLIENTS else None
        if put_out is not None:
            put_out.close()
        return store

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            stores = [*self._open.values(), *self.shared.values()]
            self._open.clear()
        for store in stores:
            store.close()
