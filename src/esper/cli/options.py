"""Options that more than one command has, and strategies made from options."""

# ruff: noqa: PLC0415 (imports inside functions: --help must not wait for them)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.strategies import SelectionStrategy

RUNS = Path("runs")

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Scope = Annotated[
    str | None, typer.Option(metavar="NAME", help="Scope in the store.  [default: all]")
]
Picture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw a picture into this file, .png, .svg or .pdf."),
]


def _help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


Help = Annotated[
    bool,
    typer.Option("--help", help="Show this message and exit.", callback=_help, is_eager=True),
]


def group(**settings: Any) -> typer.Typer:
    """Make a group of commands; its callback needs a `Help` option."""
    return typer.Typer(
        no_args_is_help=True,
        add_help_option=False,  # typer's own would import pydantic before every command
        add_completion=False,
        rich_markup_mode=None,  # with markup, --help alone would take three times as long
        pretty_exceptions_enable=False,
        **settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of ``esper train`` that determine a run; ``None`` where not given."""

    task: str | None
    config: Path | None
    strategy: str | None
    seed: int | None
    epochs: int | None
    budget: int | None
    static: bool | None
    store: str | None


def strategy_from(name: str, settings: Sequence[str]) -> "SelectionStrategy":
    """Make a strategy from its name and ``key=value`` settings.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is wrong.
    """
    import yaml

    from esper.services.tamiyo.settings import parse_yaml
    from esper.strategies import STRATEGIES

    values: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not (key and sign and value):
            raise ConfigError(f"--set {setting!r} is not key=value, as in --set epsilon=0.2")
        if key in values:
            raise ConfigError(f"--set {key} is given twice")
        try:
            values[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value cannot be read: {error}") from error
    return STRATEGIES.create(name, **values)
