"""MetricsStore: the contract of a store."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, Self

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event


class MetricsStore(ABC):
    """Append-only log of events that several writers may share.

    A new store is one file with one such class, one line in ``STORES``, and passes
    ``esper.testing.store_laws``.
    """

    durable: ClassVar[bool] = True
    """True if the events are there when the same place is opened again; false in memory only."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Open the place at a URL.

        Raises:
            ConfigError: if the URL is not one of this store's, or it has none.
            StoreError: if the place cannot be opened.
        """
        raise ConfigError(f"{cls.__name__} has no URL; make it in Python and pass the object")

    @abstractmethod
    def append(self, events: Sequence[Event]) -> None:
        """Add all of ``events`` at the end, or none of them.

        An event whose ``op_id`` is in the store already, from any writer, is left out, so that a
        write that failed without an answer can be repeated. When this returns, the events outlive
        the death of this process (``durable`` stores), though not necessarily that of the machine.

        Raises:
            ConfigError: if an event is not plain JSON; nothing was written.
            StoreError: if the store cannot be written or is closed; repeat the same events later.
        """

    @abstractmethod
    def read(
        self,
        after: str = "",
        *,
        scope: str | None = None,
        run: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[tuple[str, Event]]:
        """Read the events that are there at the time of the call, in order of appending.

        Args:
            after: Position from an earlier read of this store: begin behind it. Empty: from the
                beginning.
            scope: Only events of this scope, if given.
            run: Only events of this run, if given.
            kinds: Only events of these kinds, if given.

        Returns:
            Pairs of position and event. Positions are opaque and grow along the log, also with
            several writers: reading on from the last one misses nothing.

        Raises:
            ConfigError: if ``kinds`` is one string.
            StoreError: if the store cannot be read or is closed, or ``after`` is no position.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the place; closing again does nothing, any other use is a StoreError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
