"""``esper study effect``: what choosing the seed is worth in real training."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for torch)

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli.options import Json, Picture
from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.pictures.effect_report import About
    from esper.studies.trained.effect import EffectSpec
    from esper.studies.trained.figures import TaskFigures

FOLDER = Path("effect-study")


class Scenario(StrEnum):
    """Training of a study; an enumeration, since typer at its lower bound knows no literals."""

    NETWORKS = "networks"
    FLEET = "fleet"


def effect(  # noqa: PLR0913, PLR0917 (one for each option)
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="networks: each grows by itself on one of seven tasks; fleet: many small "
            "adaptations of one frozen network, one after another."
        ),
    ] = Scenario.NETWORKS,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Task: letter, digits, mnist1d, mnist5k, kjv, resmlp or resnet; may be repeated. "
            " [default: all]",
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Cell beside those that all are compared with, as warm1; may be repeated.  "
            "[default: all]",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Run seeds of each cell.  [default: 8]")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs of a run, instead of the task's 24 or 34."),
    ] = None,
    adaptations: Annotated[
        int | None, typer.Option(metavar="N", help="Length of a fleet.  [default: 40]")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A look: digits and letter, 3 run seeds, or a fleet of 12; minutes on two cores.",
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What trains the runs: processes or ray; changes no figure."
        ),
    ] = "processes",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Runs at once; changes no figure.  [default: one for each core, or for each of "
            "the cluster]",
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the runs; what is in it is not repeated.")
    ] = FOLDER,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report into this file, .html, pictures inside."),
    ] = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Measure in real training what choosing the seed is worth.

    Trains networks of the same initial weights on the same batches that differ in who chooses: one
    seed always, chance, auto without and with the history of earlier runs. Shows what growth took
    off the test loss over the first ten grafts, relative to one seed always and to chance, with
    bootstrap 95 % intervals over run seeds. All takes hours; Ctrl-C and a kill lose nothing but the
    runs under way.

    ``--scenario fleet`` adapts one frozen network to forty tasks in turn, with room for one kernel
    each: what an arm at random takes off the test loss, one arm always, and auto with and without
    auditions and the history of the adaptations before.
    """
    from esper.cli import study_tables, tables
    from esper.cli.study import effect_tables
    from esper.cli.study.fleet_output import show_fleet
    from esper.drawing import style
    from esper.pictures import effect_report
    from esper.studies.trained.effect import make_fleet_spec, make_spec, study
    from esper.studies.trained.engines import engine as engine_of
    from esper.studies.trained.figures import figures
    from esper.studies.trained.study_folder import StudyFolder

    _refuse_others(scenario, task=task, epochs=epochs, adaptations=adaptations)
    fleet = scenario is Scenario.FLEET
    if fleet:
        spec = make_fleet_spec(cells=cell or (), seeds=seeds, quick=quick, adaptations=adaptations)
    else:
        spec = make_spec(task or (), cells=cell or (), seeds=seeds, quick=quick, epochs=epochs)
    style.check(picture)  # now, not after hours of work
    effect_report.check(report)
    trainer = engine_of(engine, jobs, os.cpu_count() or 1)
    kept = StudyFolder(folder)
    with study_tables.progress(tables.err(), "runs") as done:
        results = study(spec, kept, trainer, done)
    files = {run.name: kept.file(run) for run in spec.runs()}
    about = effect_report.about(" ".join(["esper", *sys.argv[1:]]), spec, results)
    if others := kept.others(spec.runs()):
        tables.note(f"{folder} has {others} runs of other settings or sources, which are not read")
    if fleet:
        show_fleet(spec, results, about, files, as_json=json, report=report, picture=picture)
        return
    found = [figures(setup, results) for setup in spec.setups]
    if json:
        tables.print_json(_document(spec, found, about, files))
    else:
        effect_tables.show(tables.out(), spec, found)
    if report is not None:
        effect_report.write(report, found, results, about, files)
        tables.note(f"report: {report}")
    if picture is not None:
        from esper.pictures.effect import draw_effect

        draw_effect(found, picture)
        tables.note(f"picture: {picture}")


def _refuse_others(scenario: Scenario, **given: Any) -> None:
    others = ("task", "epochs") if scenario is Scenario.FLEET else ("adaptations",)
    for name in others:
        if given[name] not in (None, []):
            raise ConfigError(f"--{name} is of another scenario than {scenario}; leave it out")


def _document(
    spec: "EffectSpec",
    found: Sequence["TaskFigures"],
    about: "About",
    files: dict[str, Path],
) -> dict[str, Any]:
    return {
        "about": asdict(about),
        "seeds": spec.seeds,
        "cells": list(spec.cells),
        "quick": spec.quick,
        "tasks": [{**asdict(one), "sound": one.sound} for one in found],
        "runs": {name: str(path) for name, path in files.items()},
    }
