"""``esper runs`` and ``esper inspect``: what has been done, read back."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path

import typer
from rich.text import Text

from esper.app import facts, lookup
from esper.cli import show
from esper.contracts.errors import ConfigError


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
        from esper.app.picture import draw  # noqa: PLC0415 (only its caller needs matplotlib)

        draw(run, found, picture)
        show.err().print(Text(f"picture: {picture}"), soft_wrap=True)
    if events:
        for line in facts.as_lines(facts.log(found)):
            typer.echo(line)
        return
    if json:
        typer.echo(jsonlib.dumps(lookup.document(run, found), indent=2))
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
    console.print()
    console.print(show.seeds_table(lookup.seed_stories(run, found)))
    console.print()
    console.print(show.refusals_table(lookup.refusals(found)))
