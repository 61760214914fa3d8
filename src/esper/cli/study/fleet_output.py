"""Tables, pictures and reports of ``esper study effect --scenario fleet``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from esper.cli import tables
from esper.cli.study import fleet_tables
from esper.pictures.effect_report import About
from esper.pictures.fleet import Written, draw_fleet, write_fleet
from esper.studies.trained.effect import EffectSpec
from esper.studies.trained.fleet_figures import fleet_figures
from esper.studies.trained.training import Trained


def show_fleet(
    spec: EffectSpec,
    results: Sequence[Trained],
    about: About,
    files: Mapping[str, Path],
    *,
    as_json: bool,
    report: Path | None,
    picture: Path | None,
) -> None:
    """Print the figures as a table or as JSON, and write the report and the picture."""
    found = fleet_figures(spec.setups[0], results)
    if as_json:
        runs = {name: str(path) for name, path in files.items()}
        data = {"about": asdict(about), "cells": list(spec.cells), "quick": spec.quick}
        tables.print_json({**data, "fleet": asdict(found), "runs": runs})
    else:
        fleet_tables.show_fleet(tables.out(), found)
    if report is not None:
        made = [
            ("Gains", fleet_tables.GAINS, list(map(fleet_tables.gains_of, found.rows))),
            ("Costs", fleet_tables.COSTS, list(map(fleet_tables.costs_of, found.rows))),
        ]
        sentences = [*fleet_tables.remarks(found), fleet_tables.explained(found)]
        write_fleet(report, Written(found, about, made, sentences), results, files)
        tables.note(f"report: {report}")
    if picture is not None:
        draw_fleet(found, picture)
        tables.note(f"picture: {picture}")
