"""Choosers: who chooses for each scope of each project.

Each has a thread and files of its own. Where there are many, those that nobody asked for longest
are closed; who asks again gets one that knows what is stored, as after a restart of the service.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import final

from esper.server.chooser import Chooser
from esper.server.ranks import Ranks, Settings
from esper.stores import MetricsStore
from esper.strategies import STRATEGIES

_MOST, _FILES_OF_ONE = 1000, 8
"""Choosers that stay open where the limit of open files allows it; files for each, with room."""


@dataclass(slots=True)
class _Made:
    chooser: Chooser
    ranks: Ranks
    durable: bool
    users: int = 0


@final
class Choosers:
    """A `Chooser` for each project and scope, made when it is first asked.

    Args:
        open_store: Opens the store of a project.
        settings: Strategy, and how events of `Ranks` end.
        most: Choosers that stay open when nobody uses them.

    Raises:
        ConfigError: if there is no such strategy.
    """

    def __init__(
        self,
        open_store: Callable[[str], MetricsStore],
        settings: Settings,
        most: int | None = None,
    ) -> None:
        STRATEGIES.create(settings.strategy)
        self._open_store, self._settings = open_store, settings
        self._most = _room() if most is None else most
        self._made: OrderedDict[tuple[str, str], _Made] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def of(self, project: str, scope: str) -> Iterator[Chooser]:
        """Chooser of a scope, which stays open in the block.

        Raises:
            StoreError: if the store cannot be opened.
        """
        with self._used(project, scope) as made:
            yield made.chooser

    @contextmanager
    def ranks(self, project: str, scope: str) -> Iterator[Ranks]:
        """Events of a scope; raises as `of`."""
        with self._used(project, scope) as made:
            yield made.ranks

    @contextmanager
    def _used(self, project: str, scope: str) -> Iterator[_Made]:
        with self._lock:
            made = self._made.pop((project, scope), None) or self._make(project, scope)
            self._made[project, scope] = made
            made.users += 1
            idle = [self._made.pop(key) for key in self._idle()]
        try:
            for one in idle:
                one.chooser.close()
            yield made
        finally:
            with self._lock:
                made.users -= 1

    def _make(self, project: str, scope: str) -> _Made:
        store = self._open_store(project)
        chooser = Chooser(store, scope, self._settings.strategy)
        return _Made(chooser, Ranks(chooser, self._settings), store.durable)

    def _idle(self) -> list[tuple[str, str]]:
        """Those to be closed, if there are too many; a store in memory is one for all."""
        many = len(self._made) - self._most
        if many <= 0:
            return []
        free = [key for key, one in self._made.items() if one.durable and not one.users]
        return free[:many]

    def close(self) -> None:
        """Close all of them; errors of their stores are logged by their journals."""
        with self._lock:
            for one in self._made.values():
                one.chooser.close()
            self._made.clear()


def _room() -> int:
    """Choosers that the process may have files for."""
    try:
        import resource  # noqa: PLC0415 (not on Windows)
    except ImportError:
        return _MOST // _FILES_OF_ONE
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // _FILES_OF_ONE)
