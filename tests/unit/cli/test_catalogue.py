"""The tables of names are the registries, no more and no less."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from esper.blueprints import BLUEPRINTS
from esper.cli.main import app
from esper.registry import Registry
from esper.services.tamiyo.policies import POLICIES
from esper.strategies import STRATEGIES
from esper.tasks import TASKS


def esper(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("strategies", STRATEGIES),
        ("policies", POLICIES),
        ("blueprints", BLUEPRINTS),
        ("tasks", TASKS),
    ],
)
def test_every_name_is_described(command: str, table: Registry[Any]) -> None:
    rows = json.loads(esper(command, "--json"))
    assert [row["name"] for row in rows] == table.names()
    assert all(row["description"] for row in rows)
    text = esper(command)
    assert max(map(len, text.splitlines())) <= 80
    for name in table.names():
        assert f"\n{name} " in text


def test_settings_come_with_their_defaults_and_are_accepted_back() -> None:
    rows = {row["name"]: row for row in json.loads(esper("strategies", "--json"))}
    assert rows["ucb"]["settings"] == {"exploration_constant": 2.0}
    for name, row in rows.items():
        assert STRATEGIES.create(name, **row["settings"]) == STRATEGIES.create(name)


def test_blueprints_say_what_they_fit() -> None:
    rows = {row["name"]: row for row in json.loads(esper("blueprints", "--json"))}
    assert rows["glu"]["kinds"] == ["features", "sequence"]
    assert rows["se"]["kinds"] == ["conv1d", "conv2d"]


def test_tasks_say_how_long_and_how_large() -> None:
    (letter,) = [row for row in json.loads(esper("tasks", "--json")) if row["name"] == "letter"]
    assert letter["default_epochs"] == TASKS.create("letter").default_epochs
    assert letter["seeds"] == list(TASKS.create("letter").seeds)
