"""Command ``esper``: a file for each of its commands, whose heavy imports wait until it runs."""

from typing import Annotated

import typer

from esper.cli import ab, inspect, lists, replay, runs, serve, store, train
from esper.cli.errors import ErrorHandler
from esper.cli.options import Help, group
from esper.cli.study import commands

app = group(name="esper", epilog="Begin with: esper train letter", cls=ErrorHandler)


def _version(wanted: bool) -> None:
    if wanted:
        from esper.cli.name_clash import installed  # noqa: PLC0415 (reads installed packages)

        number, warning = installed()
        typer.echo(f"esper {number}")
        if warning:
            typer.echo(warning, err=True)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="ESPER_DEBUG", help="Show the traceback of an error."),
    ] = False,
    show_help: Help = False,
) -> None:
    """Grow PyTorch networks while they train; a bandit learns which seed to grow."""
    del version, debug, show_help  # dealt with by their callbacks, and in ErrorHandler


app.command()(train.train)
app.command()(runs.runs)
app.command()(inspect.inspect)
app.command()(replay.replay)
app.command()(ab.ab)
app.command()(lists.strategies)
app.command()(lists.policies)
app.command()(lists.blueprints)
app.command()(lists.tasks)
app.command()(serve.serve)
app.command()(serve.key)
app.add_typer(store.app, name="store")
app.add_typer(commands.app, name="study")
