"""Registry: names of implementations and the places of their classes, imported on first use.

A name is added by one line in a table, or by another package through an entry point::

    [project.entry-points."esper.strategies"]
    mine = "my_package.mine:Mine"
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from esper.contracts.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Table of one extension point.

    Args:
        kind: What is named, in the singular, for messages: ``"strategy"``.
        table: Name to ``"module:Class"``.
        group: Entry-point group through which other packages add names; a name of ours wins.
    """

    def __init__(self, kind: str, table: Mapping[str, str], *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._table = dict(table)
        self._found: dict[str, str] | None = None

    def names(self) -> list[str]:
        """All names, ours first, in the order of the table."""
        return list(self._everything())

    def load(self, name: str) -> type[T]:
        """Class of this name.

        Raises:
            ConfigError: if there is no such name, with the nearest suggested; or if the class of
                another package is not where its entry point says.
        """
        place = self._everything().get(name) if isinstance(name, str) else None
        if place is None:
            raise ConfigError(unknown_name(self.kind, name, self.names()))
        module, _, attribute = place.partition(":")
        try:
            return cast("type[T]", getattr(import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            if name in self._table:
                raise
            raise ConfigError(
                f"{self.kind} {name!r} of another package, {place}, cannot be imported: {error}; "
                "repair or uninstall that package"
            ) from error

    def create(self, name: str, **settings: Any) -> T:
        """Instance of the class of this name, with the given settings.

        Raises:
            ConfigError: if the name or a setting is unknown, or a setting's value is wrong.
        """
        made = self.load(name)
        if is_dataclass(made):
            known = [item.name for item in fields(made) if item.init]
            for key in settings:
                if key not in known:
                    raise ConfigError(unknown_name(f"setting of {self.kind} {name!r}:", key, known))
        return made(**settings)

    def _everything(self) -> dict[str, str]:
        if self._found is None:
            plugins = {point.name: point.value for point in entry_points(group=self.group)}
            self._found = self._table | {k: v for k, v in plugins.items() if k not in self._table}
        return self._found
