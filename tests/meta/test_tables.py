"""Every implementation of a contract that a room holds is in the room's table."""

from collections.abc import Iterator
from importlib import import_module
from inspect import isabstract
from pkgutil import walk_packages
from typing import Any

import pytest

import esper
from esper.blueprints import BLUEPRINTS
from esper.integrations import INTEGRATIONS
from esper.registry import Registry
from esper.services.tamiyo.policies import POLICIES
from esper.stores import STORES
from esper.strategies import STRATEGIES
from esper.tasks import TASKS

TABLES: dict[str, tuple[Registry[Any], str]] = {
    "strategies": (STRATEGIES, "esper.strategies.base:SelectionStrategy"),
    "blueprints": (BLUEPRINTS, "esper.blueprints.base:Blueprint"),
    "stores": (STORES, "esper.stores.base:MetricsStore"),
    "tasks": (TASKS, "esper.tasks.base:Task"),
    "integrations": (INTEGRATIONS, "esper.integrations.base:Integration"),
    "services.tamiyo.policies": (POLICIES, "esper.services.tamiyo.policies.base:Policy"),
}


def _implementations(room: str, base: type) -> Iterator[type]:
    package = import_module(f"esper.{room}")
    for found in walk_packages(package.__path__, f"{package.__name__}."):
        for value in vars(import_module(found.name)).values():
            mine = isinstance(value, type) and value.__module__ == found.name
            if mine and issubclass(value, base) and value is not base and not isabstract(value):
                yield value


@pytest.mark.parametrize("room", TABLES)
def test_every_implementation_is_in_its_table(room: str) -> None:
    registry, base = TABLES[room]
    module, _, name = base.partition(":")
    found = set(_implementations(room, getattr(import_module(module), name)))
    assert found == {registry.load(name) for name in registry.names()}


def test_every_public_name_can_be_imported() -> None:
    for name in esper.__all__:
        assert getattr(esper, name) is not None
