"""``esper runs``: a table of the runs of ``esper train``, or of those in a store."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from dataclasses import asdict
from typing import Annotated

import typer

from esper.cli.options import RUNS, Json, Runs, Scope


def runs(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE",
            help="List the runs in this store instead, as those of Tamiyo(store=...).",
            show_default=False,
        ),
    ] = None,
    scope: Scope = None,
    folder: Runs = RUNS,
    json: Json = False,
) -> None:
    """List the runs: how far each is, and what growth was worth."""
    from esper.cli import tables
    from esper.contracts.errors import ConfigError, StoreError
    from esper.runs.run_reader import summaries

    if store is not None:
        _list_store(store, scope, json)
        return
    if scope is not None:
        raise ConfigError("--scope chooses from a store; name one, as: esper runs history.db")
    if folder != RUNS and not folder.is_dir():
        raise StoreError(f"there is no folder {folder}; give the one that holds the runs")
    found = list(summaries(folder))
    if json:
        tables.print_json([asdict(run) for run in found])
    elif found:
        tables.out().print(tables.runs_table(found))
    else:
        text = f"No runs in {folder}/ yet; start one with: esper train letter"
        tables.out().print(text, soft_wrap=True, markup=False)


def _list_store(store: str, scope: str | None, json: bool) -> None:
    from esper.cli import tables
    from esper.runs.own_runs import list_runs
    from esper.runs.run_folder import damaged
    from esper.stores.addresses import shown

    with damaged(f"store {shown(store)}"):
        found = list_runs(store, scope)
    if json:
        tables.print_json([asdict(run) for run in found])
    elif found:
        tables.out().print(tables.own_runs_table(found))
    else:
        tables.out().print(f"No runs in {shown(store)} yet.", soft_wrap=True, markup=False)
