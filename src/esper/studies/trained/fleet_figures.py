"""Figures of a fleet: what each cell earns as adaptations go by, beside an arm at random."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import final

import numpy as np

from esper.studies.trained.cells import ALONE, CONTROL, RANDOM, TOGETHER, cells
from esper.studies.trained.intervals import Array, Estimate, mean, ratio
from esper.studies.trained.setups import Setup
from esper.studies.trained.training import Trained

YOUNG = 10
"""Adaptations of a fleet before the primary figure begins; a third of a shorter one."""

_SPAN = 5
"""Adaptations of one point of the learning curve."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRow:
    """Figures of one cell.

    Attributes:
        cell: Its name.
        what: One line.
        gain: Control's test loss less the cell's after an adaptation, mean over those of the
            primary figure, in nats; ``None`` for the control.
        over_random: Sum of gains over that of an arm at random, in the primary figure.
        young: The same in the adaptations before.
        curve: Mean gain in each five adaptations, over random's in all.
        accuracy: Test accuracy, in [0, 1].
        kept: Kernels that were kept, of an adaptation.
        auditioned: Kernels that took part in auditions, of an adaptation.
        compute: Operations relative to the control's.
        seconds: Processor time of an adaptation.
        arms: Number of different arms that were kept in a fleet.
    """

    cell: str
    what: str
    gain: Estimate | None
    over_random: Estimate | None
    young: Estimate | None
    curve: tuple[float, ...]
    accuracy: float
    kept: float
    auditioned: float
    compute: float
    seconds: float
    arms: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """Figures of all cells.

    Attributes:
        setup: The set-up.
        seeds: Number of run seeds, of a fleet each.
        young: Adaptations before those of the primary figure.
        rows: Figures of each cell.
        history: What the history adds to auditions: gains with it over gains without; ``None`` if
            there are no such runs.
    """

    setup: Setup
    seeds: int
    young: int
    rows: tuple[FleetRow, ...]
    history: Estimate | None


def fleet_figures(setup: Setup, results: Iterable[Trained]) -> FleetFigures:
    """Figures from results of every cell for the same run seeds."""
    found: dict[str, list[Trained]] = {}
    for result in sorted(results, key=lambda one: one.seed):
        found.setdefault(result.cell, []).append(result)
    losses = {name: np.array([run.test_losses for run in runs]) for name, runs in found.items()}
    gains = {name: losses[CONTROL] - of_cell for name, of_cell in losses.items()}
    young = min(YOUNG, setup.adaptations // 3)
    known_cells = [cell for cell in cells(setup) if cell.name in found]
    rows = [_row(cell.name, cell.what, found, gains, young) for cell in known_cells]
    known = {ALONE, TOGETHER} <= gains.keys()
    late = {name: of_cell[:, young:].sum(axis=1) for name, of_cell in gains.items()}
    return FleetFigures(
        setup=setup,
        seeds=len(found[CONTROL]),
        young=young,
        rows=tuple(rows),
        history=ratio(late[TOGETHER], late[ALONE]) if known else None,
    )


def _row(
    name: str, what: str, found: dict[str, list[Trained]], gains: dict[str, Array], young: int
) -> FleetRow:
    runs, ours, theirs = found[name], gains[name], gains[RANDOM]
    adaptations, plain = ours.shape[1], name == CONTROL
    late, spent = ours[:, young:], sum(sum(run.flops) for run in found[CONTROL])
    level = theirs.mean()
    return FleetRow(
        cell=name,
        what=what,
        gain=None if plain else mean(late.mean(axis=1)),
        over_random=None if plain else ratio(late.sum(axis=1), theirs[:, young:].sum(axis=1)),
        young=None if plain else ratio(ours[:, :young].sum(axis=1), theirs[:, :young].sum(axis=1)),
        curve=tuple(
            float(ours[:, at : at + _SPAN].mean() / level) if level > 0 else 0.0
            for at in range(0, adaptations, _SPAN)
        ),
        accuracy=fmean(fmean(run.test_accuracies) for run in runs),
        kept=fmean(sum(g["kept"] for g in run.grafts) / adaptations for run in runs),
        auditioned=fmean(len(run.auditions) / adaptations for run in runs),
        compute=sum(sum(run.flops) for run in runs) / spent,
        seconds=fmean(run.seconds / adaptations for run in runs),
        arms=fmean(
            len({(g["layer_name"], g["blueprint"]) for g in run.grafts if g["kept"]})
            for run in runs
        ),
    )
