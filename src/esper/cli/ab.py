"""``esper ab``: verdict of an A/B test so far."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for numpy)

from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli.options import Json, Picture, Scope

if TYPE_CHECKING:
    from esper.studies.logged.ab import AbResult


def ab(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="sqlite:///history.db, redis://..., or a file.")
    ],
    scope: Scope = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="SALT", help="Name of the test, where the store has several."),
    ] = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Say what an A/B test has shown so far, and whether it is decided.

    Look as often as you like: looking does not inflate the 5 % risk of a wrong decision.
    """
    from esper.cli import study_tables, tables
    from esper.drawing import style
    from esper.studies.logged.ab import analyse
    from esper.studies.logged.logs import read_store

    style.check(picture)  # now, not after the tables
    found = analyse(read_store(store, scope), test=test)
    if json:
        tables.print_json(_document(found))
    else:
        study_tables.show_ab(tables.out(), found)
    if picture is not None:
        from esper.pictures.logged import draw_ab

        draw_ab(found, picture)
        tables.note(f"picture: {picture}")


def _document(found: "AbResult") -> dict[str, Any]:
    document = asdict(found)
    for one, shown in zip(found.comparisons, document["comparisons"], strict=True):
        path = one.path
        shown["path"] = [
            [float(value) if isfinite(value) else None for value in look]
            for look in zip(path.counts, path.difference, path.low, path.high, strict=True)
        ]
    return document
