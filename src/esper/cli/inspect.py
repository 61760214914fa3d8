"""``esper inspect``: one run or one store, read back."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli.options import RUNS, Json, Picture, Runs, Scope
from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.contracts.events import Event
    from esper.runs.run_reader import Run
    from esper.services.tamiyo.preview import SeedPreview


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
    picture: Picture = None,
    scope: Scope = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="NAME", help="Run in the store, to draw or print.  [default: latest]"
        ),
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Show every graft of a run, and why each seed was chosen.

    Per seed: mean reward with its 95 % interval, the strategy's score, outcomes, and the
    probability of being chosen next.
    """
    if "://" not in run and not Path(run).is_file():
        if scope is not None or of is not None:
            raise ConfigError("--scope and --run choose from a store; leave them out for a run")
        from esper.runs.run_folder import damaged

        with damaged(f"run {run}"):
            _inspect_run(run, runs, events=events, picture=picture, json=json)
    else:
        from esper.runs.run_folder import damaged
        from esper.stores.addresses import shown

        with damaged(f"store {shown(run)}"):
            if events or picture is not None or of is not None:
                _inspect_own_run(run, scope, of, events=events, picture=picture, json=json)
            else:
                _inspect_store(run, scope, json)


def _inspect_run(name: str, runs: Path, *, events: bool, picture: Path | None, json: bool) -> None:
    from esper.cli import tables
    from esper.runs import event_rows, placebos, run_reader

    if events and json:
        raise ConfigError("--events and --json both want stdout; --json has the events too")
    run = run_reader.read_run(runs, name)
    log = run.events()
    if picture is not None:
        from esper.pictures.run import draw

        draw(run, log, picture)
        tables.note(f"picture: {picture}")
    if events:
        for line in event_rows.as_lines(event_rows.rows(log)):
            typer.echo(line)
        return
    previews = _previews(run, log)
    if json:
        tables.print_json(run_reader.document(run, log, previews))
        return
    console = tables.out()
    console.print(tables.heading(f"Run {run.folder.name}"))
    console.print(tables.spec(run))
    console.print()
    if run.result is None:
        done = sum(event.kind == "epoch" for event in log)
        say = f"{run.state} after {done} of {tables.counted(run.spec['epochs'], 'epoch')}"
        if not run.running:
            say += f"; go on with: esper train --resume {quote(name)}"
        console.print(say, style="yellow", soft_wrap=True, markup=False)
        console.print(tables.grafts_table(run_reader.grafts(log)))
    else:
        console.print(tables.result(run.result))
    chooser = run.strategy
    if run.spec["config"].get("ab_test"):  # by graft, the arm differs from layer to layer
        chooser = f"the arm of {chooser} whose turn is next"
    for part in (
        tables.seeds_table(
            [
                tables.SeedRow(seed.layer, seed.seed, seed.blueprint, seed.state, seed.kept,
                               previews.get((seed.layer, seed.seed)))
                for seed in run_reader.seed_summaries(run, log)
            ],
            chooser,
            ", in nats",
        ),
        tables.choices_table(run_reader.decisions(log)),
        tables.refusals_table(run_reader.refusals(log)),
        *tables.placebos(placebos.of_events(log)),
    ):  # fmt: skip
        console.print()
        console.print(part)


def _inspect_own_run(
    store: str,
    scope: str | None,
    name: str | None,
    *,
    events: bool,
    picture: Path | None,
    json: bool,
) -> None:
    from esper.cli import tables
    from esper.runs import event_rows, own_runs, run_reader

    if json:
        raise ConfigError("--json shows all of a store; leave it out beside --run and --picture")
    run, log = own_runs.read_run(store, scope, name)
    if picture is not None:
        from esper.drawing.run_log import draw_log

        draw_log(log, picture)
        tables.note(f"picture: {picture}")
    if events:
        for line in event_rows.as_lines(event_rows.rows(log)):
            typer.echo(line)
        return
    console = tables.out()
    console.print(tables.own_runs_table([run]))
    for part in (
        tables.grafts_table(run_reader.grafts(log)),
        tables.choices_table(run_reader.decisions(log)),
        tables.refusals_table(run_reader.refusals(log)),
    ):
        console.print()
        console.print(part)


def _inspect_store(url: str, scope: str | None, json: bool) -> None:
    from esper.cli import tables
    from esper.runs.seed_previews import document, preview_store
    from esper.stores.addresses import shown

    found = preview_store(url, scope)
    if json:
        tables.print_json([document(one) for one in found])
        return
    console = tables.out()
    console.print(tables.heading(f"Store {shown(url)}"), soft_wrap=True)
    for one in found:
        rows = [
            tables.SeedRow(layer, seed, one.blueprints[layer, seed], preview=preview)
            for (layer, seed), preview in one.previews.items()
        ]
        console.print()
        console.print(tables.heading(f"Scope {one.scope!r}"))
        console.print(tables.seeds_table(rows, f"{one.strategy} (default settings)"))
        console.print()
        console.print(tables.choices_table(one.decisions))
        for said in tables.placebos(one.placebos):
            console.print()
            console.print(said)


def _previews(run: "Run", log: list["Event"]) -> Mapping[tuple[str, int], "SeedPreview"]:
    from esper.cli import tables
    from esper.runs.seed_previews import preview_run

    try:
        return preview_run(run, log)
    except ConfigError as error:  # a strategy that is not installed here; the log is still there
        tables.note(f"the next choices cannot be previewed: {error}", style="yellow")
        return {}
