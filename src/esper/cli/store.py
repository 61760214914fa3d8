"""``esper store``: check, export, import, compact and migrate a history."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for them)

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from esper.cli.options import Help, Json, group

app = group(help="Check, copy and compact stores of histories.")

Store = Annotated[
    str, typer.Argument(metavar="STORE", help="sqlite:///history.db, redis://host:6379/0, a file.")
]
_SHOWN = 20


@app.callback()
def _store(show_help: Help = False) -> None:
    """Check, copy and compact stores of histories."""
    del show_help


_RECOVER = "readers may miss events; copy the file, and try: sqlite3 FILE .recover"


@app.command()
def check(store: Store, json: Json = False) -> None:
    """Read all of a store: what is odd, damaged or missing; exit code 1 if anything is.

    Odd entries are passed over by every reader. Events that are missing are those of a run
    whose later ones are there; esper train --resume RUN tells again what its checkpoint has.
    """
    from esper.cli import tables
    from esper.runs import store_care
    from esper.runs.store_address import url_of

    found = store_care.check(url_of(store))
    if json:
        tables.print_json({**asdict(found), "whole": found.is_whole})
    else:
        out = tables.out()
        for name, value in (
            ("store", found.store),
            ("identity", found.identity or "none, of an older version"),
            ("events", f"{found.events:,} of {found.runs:,} runs"),
            ("scopes", ", ".join(f"{k!r} {v:,}" for k, v in sorted(found.scopes.items()))),
            ("odd entries", f"{len(found.quarantined):,}"),
            ("damaged", f"{len(found.damage):,}"),
            ("missing", f"{sum(last - first + 1 for _, first, last in found.missing):,}"),
            ("noted as lost", f"{sum(last - first + 1 for _, first, last, _ in found.lost):,}"),
            ("told again", f"{found.repeated:,}"),
        ):
            out.print(f"{name:14}{value}", markup=False, soft_wrap=True)
        lines = [
            *(f"damaged: {line}" for line in found.damage),
            *([_RECOVER] if found.damage else []),
            *(f"odd: entry {place}: {why}" for place, why in found.quarantined.items()),
            *(f"missing: {writer!r} {first} to {last}" for writer, first, last in found.missing),
            *(
                f"lost: {writer!r} {first} to {last}: {why}"
                for writer, first, last, why in found.lost
            ),
            *(
                f"unknown: {count:,} of kind {kind!r}, of a newer version or another program"
                for kind, count in found.unknown.items()
            ),
            *found.advice,
        ]
        for line in lines[:_SHOWN]:
            out.print(line, markup=False, soft_wrap=True)
        if len(lines) > _SHOWN:
            out.print(f"and {len(lines) - _SHOWN:,} more; see --json")
    if not found.is_whole:
        raise typer.Exit(1)


@app.command()
def export(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, one event a line.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Write all events of a store into a file, with a checksum."""
    from esper.cli import tables
    from esper.runs import store_care
    from esper.runs.store_address import url_of

    count = store_care.export(url_of(store), file, replace=replace)
    tables.note(f"{count:,} events in {file}")


@app.command("import")
def take_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that export wrote.")],
    store: Store,
) -> None:
    """Append the events of an exported file to a store; those that it has are left out."""
    from esper.cli import tables
    from esper.runs import store_care
    from esper.runs.store_address import url_of

    count, new = store_care.take_in(file, url_of(store))
    tables.note(f"{count:,} events in {file}, {new:,} of them new")


@app.command()
def compact(store: Store) -> None:
    """Give back room that a store does not need."""
    from esper.cli import tables
    from esper.runs import store_care
    from esper.runs.store_address import url_of
    from esper.stores.addresses import shown

    store_care.compact(url_of(store))
    tables.note(f"{shown(url_of(store))} is compacted")


@app.command()
def migrate(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Store to read.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Store to append to.")],
) -> None:
    """Copy all events of a store into another, and compare the histories."""
    from esper.cli import tables
    from esper.contracts.errors import StoreError
    from esper.runs import store_care
    from esper.runs.store_address import url_of

    count, new, same = store_care.migrate(url_of(source), url_of(target))
    if same is False:
        raise StoreError("the histories differ; check both stores, nothing was removed")
    told = "" if same is None else "; the histories are equal, bit for bit"
    tables.note(f"{count:,} events, {new:,} of them new{told}")
