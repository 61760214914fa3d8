"""``esper runs`` and ``esper inspect``: what has been done, read back."""

import json as jsonlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer
from rich.text import Text

from esper.cli import show
from esper.cli import standing as standing_tables
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.runs import event_rows as facts
from esper.runs import run_reader as lookup
from esper.runs import seed_previews as standing
from esper.runs.store_address import without_password
from esper.services.tamiyo.preview import SeedOutlook


def runs(folder: Path, *, json: bool) -> None:
    """List the runs in a folder."""
    found = list(lookup.summaries(folder))
    if json:
        typer.echo(jsonlib.dumps([asdict(run) for run in found], indent=2))
    elif found:
        show.out().print(show.runs_table(found))
    else:
        text = f"No runs in {folder}/ yet; start one with: esper train letter"
        show.out().print(Text(text), soft_wrap=True)


def inspect(name: str, *, runs: Path, events: bool, picture: Path | None, json: bool) -> None:
    """Show one run.

    Raises:
        ConfigError: if there is no such run, or two outputs are asked for at once.
        StoreError: if the run or its event log cannot be read.
    """
    if events and json:
        raise ConfigError("--events and --json both want stdout; --json has the events too")
    run = lookup.read_run(runs, name)
    found = run.events()
    if picture is not None:
        from esper.pictures.run import draw  # noqa: PLC0415 (only its caller needs matplotlib)

        draw(run, found, picture)
        show.err().print(Text(f"picture: {picture}"), soft_wrap=True)
    if events:
        for line in facts.as_lines(facts.log(found)):
            typer.echo(line)
        return
    outlooks = _outlooks(run, found)
    if json:
        typer.echo(jsonlib.dumps(lookup.document(run, found, outlooks), indent=2))
        return
    console = show.out()
    console.print(Text(f"Run {run.folder.name}", style="bold"))
    console.print(show.spec(run))
    if run.result is None:
        done = sum(event.kind == "epoch" for event in found)
        say = f"{run.state} after {done} of {run.spec['epochs']} epochs"
        if not run.running:
            say += f"; go on with: esper train --resume {name}"
        console.print(Text(say, style="yellow"), soft_wrap=True)
        console.print(show.grafts_table([dict(e.data) for e in found if e.kind == "graft"]))
    else:
        console.print()
        console.print(show.result(run))
    rows = standing_tables.rows_of_run(lookup.seed_stories(run, found), outlooks)
    for part in (
        standing_tables.seeds_table(rows, _who(run), ", in nats"),
        standing_tables.choices_table(lookup.decisions(found)),
        show.refusals_table(lookup.refusals(found)),
    ):
        console.print()
        console.print(part)


def inspect_store(url: str, scope: str | None, *, only_runs: bool, json: bool) -> None:
    """Show where the seeds of a store stand, scope by scope.

    Args:
        url: Address of the store.
        scope: Only this one; ``None`` for all.
        only_runs: Whether something was asked for that only a run has.
        json: Whether to print one JSON document.

    Raises:
        ConfigError: if it is no store, has nothing to show, or ``only_runs``.
        StoreError: if the store cannot be read.
    """
    if only_runs:
        raise ConfigError("--events and --picture show a run; leave them out for a store")
    found = standing.of_store(url, scope)
    if json:
        typer.echo(jsonlib.dumps([standing.document(one) for one in found], indent=2))
        return
    console = show.out()
    console.print(Text(f"Store {without_password(url)}", style="bold"), soft_wrap=True)
    for one in found:
        console.print()
        console.print(Text(f"Scope {one.scope!r}", style="bold"))
        rows = standing_tables.rows_of_history(one)
        console.print(standing_tables.seeds_table(rows, f"{one.strategy} (default settings)"))
        console.print()
        console.print(standing_tables.choices_table(one.decisions))


def _who(run: lookup.Run) -> str:
    """Who would choose next; in an A/B test by graft that differs from layer to layer."""
    if run.spec["config"].get("ab_test"):
        return f"the arm of {run.strategy} whose turn is next"
    return run.strategy


def _outlooks(run: lookup.Run, events: list[Event]) -> Mapping[standing.Seat, SeedOutlook]:
    try:
        return standing.of_run(run, events)
    except ConfigError as error:  # a strategy that is not installed here; the log is still there
        say = f"the strategy cannot be asked what it thinks now: {error}"
        show.err().print(Text(say, style="yellow"), soft_wrap=True)
        return {}
