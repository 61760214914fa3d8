"""``esper strategies``, ``esper blueprints``, ``esper tasks``: what stands in the tables."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import getdoc
from typing import Any

import typer
from rich.text import Text

from esper.blueprints import BLUEPRINTS
from esper.cli import show
from esper.registry import Registry
from esper.strategies import STRATEGIES
from esper.tasks import TASKS


def strategies(*, json: bool) -> None:
    """Who can choose a seed."""
    rows = _rows(STRATEGIES, ("when", "learns"))
    for row in rows:
        row["when"] = row["when"] or row["description"]  # of somebody else's
    _print(rows, json, ("name", "when", "settings"))


def blueprints(*, json: bool) -> None:
    """What a seed can grow into."""
    rows = _rows(BLUEPRINTS, ("kinds",))
    _print(rows, json, ("name", "kinds", "description", "settings"))


def tasks(*, json: bool) -> None:
    """What there is to train on."""
    asked = ("default_epochs", "default_budget", "layers", "seeds")
    rows = _rows(TASKS, asked)
    columns = ("name", "description", "default_epochs", "default_budget", "layers", "seeds")
    _print(rows, json, columns)


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
    """Every setting has a default, so that a name alone is enough."""
    if not is_dataclass(made):
        return {}
    default = made()
    return {item.name: getattr(default, item.name) for item in fields(made) if item.init}


def _print(rows: list[dict[str, Any]], json: bool, columns: Sequence[str]) -> None:
    if json:
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    heads = {name: name.removeprefix("default_") for name in columns}
    numbers = [head for name, head in heads.items() if isinstance(rows[0][name], int)]
    made = show.table(*heads.values(), right=numbers)
    for row in rows:
        made.add_row(*[_cell(row[name], bold=name == "name") for name in columns])
    show.out().print(made)


def _cell(value: object, *, bold: bool) -> Text:
    if isinstance(value, dict):
        return Text("\n".join(f"{name}={default!r}" for name, default in value.items()))
    if isinstance(value, list):
        return Text(" ".join(map(str, value)))
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return Text(text, style="bold" if bold else "", no_wrap=bold)
