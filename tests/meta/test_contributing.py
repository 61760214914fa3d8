"""CONTRIBUTING.md and docs/architecture.md show the house as it is."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "esper"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOUSE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_example_is_the_smallest_strategy() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert example == (SOURCE / "strategies" / "uniform.py").read_text(encoding="utf-8")


def test_every_room_is_drawn() -> None:
    drawn = set(re.findall(r"^  (\w+)/", HOUSE, flags=re.MULTILINE))
    assert drawn == {path.parent.name for path in SOURCE.glob("*/__init__.py")}


def test_the_order_of_imports_is_that_of_the_rules() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (rule["layers"] for rule in contracts if rule["name"] == "rooms")
    (order,) = re.findall(r"^```\n(cli .*?)^```", HOUSE, flags=re.MULTILINE | re.DOTALL)
    assert [floor.strip() for floor in order.split("→")] == layers


def test_the_tables_and_laws_are_there() -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE + HOUSE):
        if path.endswith("/x.py"):
            continue
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path
