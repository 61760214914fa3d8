"""``esper replay``: the reward that another strategy would have earned, from logs."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for numpy)

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli.errors import FAILED
from esper.cli.options import RUNS, Json, Picture, Runs, Scope, strategy_from
from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.studies.logged.replay import Replay


def replay(  # noqa: PLR0913, PLR0917 (one for each option)
    strategy: Annotated[
        str,
        typer.Option(metavar="NAME", help="Strategy to replay; see: esper strategies."),
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
        typer.Option(metavar="URL", help="Replay the logs in this store, instead of runs."),
    ] = None,
    scope: Scope = None,
    picture: Picture = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Estimate from logs what another strategy would have earned.

    Weighs every logged outcome by how likely the strategy was to choose the same. Where the logs
    cannot tell, it says so, and exits with 1.
    """
    from esper.cli import study_tables, tables
    from esper.drawing import style
    from esper.studies.logged import logs
    from esper.studies.logged.replay import replay as estimate

    target = strategy_from(strategy, settings or [])
    style.check(picture)  # now, not after the tables
    if bool(run) == bool(store):
        raise ConfigError("give the names of runs or a --store, one of the two")
    if scope and not store:
        raise ConfigError("--scope chooses from a --store; a run has one scope")
    source = logs.read_store(store, scope) if store else logs.read_runs(runs, run or [])
    found = estimate(source, target)
    if json:
        tables.print_json(_document(found))
    else:
        study_tables.show_replay(tables.out(), found)
    if found.refusal:
        if picture is not None:
            tables.note("no picture: there is no estimate to draw")
        raise typer.Exit(FAILED)
    if picture is not None:
        from esper.pictures.logged import draw_replay

        draw_replay(found, picture)
        tables.note(f"picture: {picture}")


def _document(found: "Replay") -> dict[str, Any]:
    estimates = [
        {**asdict(one), "interval": one.interval, "gain_interval": one.gain_interval}
        for one in found.estimates
    ]
    return {**asdict(found), "estimates": estimates, "interval": "normal, 95 %"}
