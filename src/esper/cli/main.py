"""The commands of ``esper``, one function each; what they do is imported when they run."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for torch)

from pathlib import Path
from typing import Annotated

import typer

from esper.cli import study
from esper.cli.outermost import Outermost
from esper.contracts.errors import ConfigError

app = typer.Typer(
    name="esper",
    epilog="Begin with: esper train letter",
    cls=Outermost,
    no_args_is_help=True,
    # What typer adds itself would have it import pydantic before every command; --help is below.
    add_help_option=False,
    add_completion=False,
    rich_markup_mode=None,  # with markup, --help alone would take three times as long
    pretty_exceptions_enable=False,
)
app.add_typer(study.app, name="study")

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
_RUNS = Path("runs")


def _version(wanted: bool) -> None:
    if wanted:
        from esper.cli.name_clash import installed

        number, warning = installed()
        typer.echo(f"esper {number}")
        if warning:
            typer.echo(warning, err=True)
        raise typer.Exit


def _help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
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
    show_help: Annotated[
        bool,
        typer.Option("--help", help="Show this message and exit.", callback=_help, is_eager=True),
    ] = False,
) -> None:
    """Grow PyTorch networks while they train; a bandit learns which seed to grow."""
    del version, debug, show_help  # dealt with above, and in Outermost


@app.command()
def train(  # noqa: PLR0913, PLR0917 (one for each option)
    task: Annotated[
        str | None,
        typer.Argument(help="What to train on; see: esper tasks. Not needed with --resume."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings, a YAML file.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Who chooses the seeds; see: esper strategies.  [default: auto]"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of weights, batches and choices: same seed, same run.  [default: 0]"
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="How long to train.  [default: the task's]"),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Parameters that growth may add in all.  [default: the task's]"
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where to keep the event log, and learn from the runs that are there already: "
            "sqlite:///history.db or redis://host:6379/0.  [default: the run's folder]",
        ),
    ] = None,
    runs: Runs = _RUNS,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.")
    ] = None,
    json: Json = False,
) -> None:
    """Grow a network on a task, beside an un-grown control.

    Shows each decision as it is taken, and at the end what every graft was worth. The run's folder
    keeps everything; Ctrl-C loses nothing.
    """
    from esper.cli import training

    asked = training.Asked(
        task=task,
        config=config,
        strategy=strategy,
        seed=seed,
        epochs=epochs,
        budget=budget,
        store=store,
    )
    training.command(asked, runs=runs, resume=resume, json=json)


@app.command("runs")
def list_runs(runs: Runs = _RUNS, json: Json = False) -> None:
    """List the runs: how far each is, and what growth was worth."""
    from esper.cli import looking

    looking.runs(runs, json=json)


@app.command()
def inspect(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Name of a run, or its folder; or a store: sqlite:///history.db, a file.",
        ),
    ],
    events: Annotated[
        bool,
        typer.Option(
            "--events", help="Print the event log, one JSON object a line: same seed, same log."
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the run into this file, .png or .svg."),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose history in a store.  [default: all]"),
    ] = None,
    runs: Runs = _RUNS,
    json: Json = False,
) -> None:
    """Show what a run was asked for, what came of it, and why.

    Per seed: mean reward with its 95 % interval, the strategy's score, outcomes, and how likely it
    is to be chosen next.
    """
    from esper.cli import looking

    if "://" not in run and not Path(run).is_file():
        if scope is not None:
            raise ConfigError("--scope chooses from a store; a run has one scope")
        looking.inspect(run, runs=runs, events=events, picture=picture, json=json)
    else:
        looking.inspect_store(run, scope, only_runs=events or picture is not None, json=json)


@app.command()
def replay(  # noqa: PLR0913, PLR0917 (one for each option)
    strategy: Annotated[
        str,
        typer.Option(metavar="NAME", help="Who might have chosen; see: esper strategies."),
    ],
    run: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Names of runs, or their folders.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of it; may be repeated."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Replay what is in this store, instead of runs."),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose history in the store.  [default: all]"),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the estimates into this file, .png or .svg."),
    ] = None,
    runs: Runs = _RUNS,
    json: Json = False,
) -> None:
    """Estimate from logs what another strategy would have earned.

    Weighs every logged outcome by how likely the strategy was to choose the same. Where the logs
    cannot tell, it says so, and exits with 1.
    """
    from esper.cli import studying

    source = studying.Source(runs=runs, names=run or [], store=store, scope=scope)
    studying.replay(source, strategy, settings or [], json=json, picture=picture)


@app.command()
def ab(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="sqlite:///history.db, redis://..., or a file.")
    ],
    scope: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose history in the store.  [default: all]"),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="SALT", help="Which test, where the store has several."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the confidence sequence into this file, .png or .svg."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what an A/B test has shown so far, and whether it is decided.

    Look as often as you like: looking does not inflate the 5 % risk of a wrong decision.
    """
    from esper.cli import studying

    studying.ab(store, scope=scope, test=test, json=json, picture=picture)


@app.command()
def strategies(json: Json = False) -> None:
    """List the strategies and their settings."""
    from esper.cli import catalogue

    catalogue.strategies(json=json)


@app.command()
def blueprints(json: Json = False) -> None:
    """List what a seed can grow into, and where it fits."""
    from esper.cli import catalogue

    catalogue.blueprints(json=json)


@app.command()
def tasks(json: Json = False) -> None:
    """List the tasks that come with Esper."""
    from esper.cli import catalogue

    catalogue.tasks(json=json)
