"""MetricsStore: the contract of a store."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import ClassVar, Self

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.events import Event, first_number


class MetricsStore(ABC):
    """Append-only log of events that several writers may share.

    A new store is one file with one such class, one line in ``STORES``, and passes
    ``esper.testing.store_laws``. The methods that are not abstract have slow or empty defaults.
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

    @classmethod
    def reader(cls, url: str) -> Self:
        """Open the place at a URL to read it only, where that makes a difference.

        Raises:
            ConfigError, StoreError: as `from_url`.
        """
        return cls.from_url(url)

    @property
    def identity(self) -> str:
        """Random name that the place got when it was made; empty if it has none."""
        return ""

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Entries that reads have passed over because they are no events: position, and why."""
        return {}

    @abstractmethod
    def append(self, events: Sequence[Event]) -> None:
        """Add all of ``events`` at the end, or none of them.

        An event that is in the store already, under the same ``op_id`` from any writer, is left
        out, so that a write that failed without an answer can be repeated. When this returns, the
        events outlive the death of this process (``durable`` stores), though not necessarily that
        of the machine.

        Raises:
            ConfigError: if an event is not plain JSON; nothing was written.
            ConflictError: if other content is stored under an ``op_id``.
            HoleError: if events of a writer with lower numbers are missing.
            LeaseError: if a writer's lease that this store claimed is another's by now.
            LossError: if the place lost events since it was opened, or is another place.
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

        Entries that are no events are passed over, and stand in `quarantined`.

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

    def end(self, scope: str) -> str:
        """Position of the last event of a scope or of a later one; empty if it is not known.

        The longer position is the later one, of two as long the one that is later in the alphabet.

        Raises:
            StoreError: if the store cannot be read or is closed.
        """
        del scope
        return ""

    def next_number(self, writer: str) -> int:
        """One more than the highest number of a writer's events; 0 without any.

        Raises:
            StoreError: if the store cannot be read or is closed.
        """
        numbers = [event.number for _, event in self.read() if event.writer == writer]
        return max(numbers, default=-1) + 1

    def missing(self, writer: str, before: int) -> list[tuple[int, int]]:
        """Numbers below ``before`` without an event of this writer, as ranges of first and last.

        Raises:
            StoreError: if the store cannot be read or is closed.
        """
        found = [
            (first_number(event), event.number)
            for _, event in self.read()
            if event.writer == writer
        ]
        return gaps(found, before)

    def claim(self, writer: str, holder: str, seconds: float) -> None:  # noqa: B027 (no leases)
        """Take, or keep, the lease of a writer, which ends by itself after some time.

        Args:
            writer: Name of the writer.
            holder: Who takes it, as `stores.leases.holder` names a process.
            seconds: How long it lasts from now.

        Raises:
            LeaseError: if another holder has it, and may be alive.
            StoreError: if the store cannot be written or is closed.
        """

    def release(self, writer: str) -> None:  # noqa: B027 (no leases)
        """Give a lease back that this store claimed; again does nothing.

        Raises:
            StoreError: if the store cannot be written.
        """

    def reserve(self, group: str, name: str, holder: str, seconds: float) -> bool:
        """Reserve a name of a group, so that nobody else gets it; ends by itself after some time.

        Args:
            group: Any text; what is reserved in one group is free in another.
            name: Any text.
            holder: Who reserves it; the same holder may do so again, which begins the time anew.
            seconds: How long it lasts from now; 0 gives back what this holder has.

        Returns:
            False if another holder has it.

        Raises:
            StoreError: if the store keeps no reservations, cannot be written or is closed.
        """
        raise StoreError(
            f"{type(self).__name__} keeps no reservations; use a store that does, as "
            "sqlite:///history.db"
        )

    def reserved(self, group: str) -> Mapping[str, str]:
        """Names of a group that are reserved now, and the holder of each.

        Raises:
            StoreError: if the store cannot be read or is closed.
        """
        del group
        return {}

    def compact(self) -> None:  # noqa: B027 (nothing to give back)
        """Give back room that the place does not need.

        Raises:
            StoreError: if the place cannot be written.
        """

    def faults(self) -> list[str]:
        """Sentences about damage of the place beside its entries, as of an index; empty if none.

        Raises:
            StoreError: if the place cannot be read or is closed.
        """
        return []

    def advice(self) -> list[str]:
        """Sentences about settings of the place that let it lose events; empty if all is well."""
        return []

    def load_snapshot(self, name: str) -> str | None:
        """Text that was saved under this name; ``None`` if there is none.

        Raises:
            StoreError: if the store cannot be read or is closed.
        """
        del name
        return None

    def save_snapshot(self, name: str, text: str) -> None:  # noqa: B027 (no snapshots)
        """Save a text, which can be recomputed from the events, in place of an earlier one.

        Raises:
            StoreError: if the store cannot be written or is closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the place; closing again does nothing, any other use is a StoreError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def gaps(found: Collection[tuple[int, int]], before: int) -> list[tuple[int, int]]:
    """Ranges of numbers in ``[0, before)`` that no range of ``found`` covers; ends included.

    Example:
        >>> gaps([(0, 0), (3, 4), (1, 1)], 8)
        [(2, 2), (5, 7)]
    """
    ranges, following = list[tuple[int, int]](), 0
    for (first, last), _ in groupby(sorted(found)):
        if first >= before:
            break
        if first > following:
            ranges.append((following, first - 1))
        following = max(following, last + 1)
    return [*ranges, (following, before - 1)] if following < before else ranges
