"""Choosers: who chooses for each scope of each project."""

from collections.abc import Callable
from threading import Lock
from typing import final

from esper.server.chooser import Chooser
from esper.server.ranks import Ranks, Settings
from esper.stores import MetricsStore
from esper.strategies import STRATEGIES


@final
class Choosers:
    """A `Chooser` for each project and scope, made when it is first asked.

    Args:
        open_store: Opens the store of a project.
        settings: Strategy, and how events of `Ranks` end.

    Raises:
        ConfigError: if there is no such strategy.
    """

    def __init__(self, open_store: Callable[[str], MetricsStore], settings: Settings) -> None:
        STRATEGIES.create(settings.strategy)
        self._open_store, self._settings = open_store, settings
        self._made: dict[tuple[str, str], tuple[Chooser, Ranks]] = {}
        self._lock = Lock()

    def of(self, project: str, scope: str) -> Chooser:
        """Chooser of a scope.

        Raises:
            StoreError: if the store cannot be opened.
        """
        return self._of(project, scope)[0]

    def ranks(self, project: str, scope: str) -> Ranks:
        """Events of a scope; raises as `of`."""
        return self._of(project, scope)[1]

    def _of(self, project: str, scope: str) -> tuple[Chooser, Ranks]:
        with self._lock:
            found = self._made.get((project, scope))
            if found is None:
                chooser = Chooser(self._open_store(project), scope, self._settings.strategy)
                found = chooser, Ranks(chooser, self._settings)
                self._made[project, scope] = found
            return found

    def close(self) -> None:
        """Close all of them; errors of their stores are logged by their journals."""
        with self._lock:
            for chooser, _ in self._made.values():
                chooser.close()
            self._made.clear()
