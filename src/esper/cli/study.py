"""``esper study``: experiments that anybody can repeat."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for numpy)

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_help_option=False,  # what typer adds itself would import pydantic; --help is below
    add_completion=False,
    rich_markup_mode=None,
)


def _help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


@app.callback()
def main(
    show_help: Annotated[
        bool,
        typer.Option("--help", help="Show this message and exit.", callback=_help, is_eager=True),
    ] = False,
) -> None:
    """Repeat the experiments that Esper's defaults rest on."""
    del show_help  # dealt with above


@app.command()
def regret(  # noqa: PLR0913, PLR0917 (one for each option)
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Who takes part; may be repeated, and set: thompson:posterior=gaussian,"
            "prior_count=2. Random always does.  [default: all that learn but the slow neural]",
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Where: A to F, H1 to H15, F-uniform, F-exponential, goals, held-out or all; may "
            "be repeated.  [default: goals, which is A to F]",
        ),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each in each.  [default: 20]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Choices in a run, at most.  [default: 1500]")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="100 runs of 5000 choices, as the goals mean it: half an hour."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same figures.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processes; changes no figure.  [default: one for each core]"
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw regret over time into this file, .png or .svg."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of tables.")
    ] = False,
) -> None:
    """Compare strategies where the best seed is known: what does not knowing it cost?

    Shows the mean regret with its standard error and the worst run, the best strategy first. As it
    stands it takes a minute or two and is a look: goals are for --full.
    """
    from esper.cli import comparing

    asked = comparing.asked(
        strategy or [], environment or [], runs=runs, steps=steps, full=full, seed=seed
    )
    comparing.regret(asked, jobs=jobs, picture=picture, json=json)
