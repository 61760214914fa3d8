"""``esper strategies``, ``policies``, ``blueprints``, ``tasks``: the tables of names."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import getdoc
from typing import Any

from esper.cli.options import Json
from esper.registry import Registry

_WHOLE = "(model)"  # as a layer of this kind is called in records; its name is empty


def strategies(json: Json = False) -> None:
    """List the strategies and their settings."""
    from esper.strategies import STRATEGIES

    rows = _rows(STRATEGIES, ("when", "learns"))
    for row in rows:
        row["when"] = row["when"] or row["description"]  # a strategy of another package has none
    _print(rows, json, ("name", "when", "settings"))


def policies(json: Json = False) -> None:
    """List the policies: who decides where and when to grow."""
    from esper.services.tamiyo.policies import POLICIES

    rows = _rows(POLICIES, ("when",))
    for row in rows:
        del row["settings"]  # all policies have the settings of ``growth:``
    _print(rows, json, ("name", "when"))


def blueprints(json: Json = False) -> None:
    """List what a seed can grow into, and where it fits."""
    from esper.blueprints import BLUEPRINTS

    _print(_rows(BLUEPRINTS, ("kinds",)), json, ("name", "kinds", "description", "settings"))


def tasks(json: Json = False) -> None:
    """List the tasks that come with Esper."""
    from esper.tasks import TASKS

    attributes = ("default_epochs", "default_budget", "layers", "seeds")
    _print(_rows(TASKS, attributes), json, ("name", "description", *attributes))


def _rows(table: Registry[Any], attributes: Sequence[str]) -> list[dict[str, Any]]:
    return [_row(name, table.load(name), attributes) for name in table.names()]


def _row(name: str, made: type, attributes: Sequence[str]) -> dict[str, Any]:
    first_line = (getdoc(made) or "").partition("\n")[0].replace("``", "")
    row = {"name": name, "description": getattr(made, "description", first_line)}
    for attribute in attributes:
        value = getattr(made, attribute)
        row[attribute] = list(value) if isinstance(value, tuple) else value
    return {**row, "settings": _settings(made)}


def _settings(made: type) -> dict[str, Any]:
    if not is_dataclass(made):
        return {}
    default = made()
    return {item.name: getattr(default, item.name) for item in fields(made) if item.init}


def _print(rows: list[dict[str, Any]], json: bool, columns: Sequence[str]) -> None:
    from rich.text import Text

    from esper.cli import tables

    if json:
        tables.print_json(rows)
        return
    heads = {name: name.removeprefix("default_") for name in columns}
    numbers = [head for name, head in heads.items() if isinstance(rows[0][name], int)]
    made = tables.table(*heads.values(), right=numbers)
    for row in rows:
        name = Text(row["name"], style="bold", no_wrap=True)
        made.add_row(name, *[Text(_cell(row[column])) for column in columns[1:]])
    tables.out().print(made)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}={default!r}" for name, default in value.items())
    if isinstance(value, list):
        return " ".join([str(part) or _WHOLE for part in value])
    return f"{value:,}" if isinstance(value, int) else str(value)
