"""Nothing stands in a folder of extensions that its table does not name."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from esper.blueprints import BLUEPRINTS
from esper.registry import Registry
from esper.stores import STORES
from esper.strategies import STRATEGIES
from esper.tasks import TASKS

SRC = Path(__file__).parents[2] / "src" / "esper"

# Files of such a folder that are no entry of its table.
SUPPORTING = {"journal"}


@pytest.mark.parametrize(
    ("registry", "folder"),
    [
        (STRATEGIES, "services/tamiyo/strategies"),
        (BLUEPRINTS, "blueprints"),
        (STORES, "stores"),
        (TASKS, "tasks"),
    ],
    ids=["strategies", "blueprints", "stores", "tasks"],
)
def test_every_file_is_in_its_table(registry: Registry[Any], folder: str) -> None:
    in_table = {registry.load(name).__module__.rpartition(".")[2] for name in registry.names()}
    files = {p.stem for p in (SRC / folder).glob("*.py") if not p.stem.startswith("_")}
    assert files - SUPPORTING == in_table


def test_every_public_name_can_be_imported() -> None:
    esper = import_module("esper")
    for name in esper.__all__:
        assert getattr(esper, name) is not None
