"""What a history must do: append events, read them back in order."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import ClassVar, Self

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event


class MetricsStore(ABC):
    """An append-only log of events that several writers may share.

    A new store is one file with one such class, one line in ``STORES``, and passes
    ``esper.testing.store_laws``.
    """

    durable: ClassVar[bool] = True
    """Whether opening the same place again finds what was written; false in memory only."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Open the place that ``url`` names.

        Raises:
            ConfigError: if the URL is not one of this store's, or it has none.
            StoreError: if the place cannot be opened.
        """
        raise ConfigError(f"{cls.__name__} has no URL; make it in Python and pass the object")

    @abstractmethod
    def append(self, events: Sequence[Event]) -> None:
        """Add all of ``events`` at the end, or none of them.

        An event whose ``op_id`` is in the store already, whoever wrote it, is left out: so a write
        that failed without an answer can be repeated. When this returns, the events outlive the
        death of this process (``durable`` stores), though not necessarily that of the machine.

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
        """Read, in order of appending, what is there at the time of the call.

        Args:
            after: A position that an earlier read of this store gave; the event at it is not
                given again. Empty: from the beginning.
            scope: Only events of this scope; ``None``: of all.
            run: Only events of this run; ``None``: of all.
            kinds: Only events of these kinds; ``None``: of all.

        Returns:
            Pairs of position and event. Positions are opaque and grow along the log, also when
            other writers are at work: reading on from the last one misses nothing.

        Raises:
            ConfigError: if ``kinds`` is one string.
            StoreError: if the store cannot be read or is closed, or ``after`` is no position.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the place; closing again does nothing, any other use is a StoreError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
