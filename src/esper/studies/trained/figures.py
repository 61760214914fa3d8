"""Figures of the effect study: gains over the control, and what a cell earns beside baselines.

The *area* of a run is the sum, over the epochs of the set-up's window, of the control's test loss
less the run's, epoch by epoch, both of one run seed; in nats times epochs, > 0 if growth helped.
The *effect* of a cell is the ratio of sums over run seeds: its areas over those of a baseline.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

import numpy as np

from esper.runs.placebos import Passed, Placebos
from esper.studies.trained.cells import (
    CONTROL,
    HOMOGENEOUS,
    ORACLE,
    PLACEBO,
    RANDOM,
    WITH_AND_WITHOUT,
    Cell,
    cells,
    slot_names,
)
from esper.studies.trained.intervals import Array, Estimate, mean, ratio
from esper.studies.trained.setups import GRAFTS, Setup
from esper.studies.trained.training import Trained

SLOTS = "slots"
"""Mean of the cells that take one seed always: seed 0, over the orders of the slots."""

AFTER = (3, 5, 10)
"""Grafts after which the gain is told."""

_LAST = 3
"""Epochs at the end over which final accuracies are means."""

_TOLERANCE = 0.02
"""Deviation from 1 that the homogeneous cells may have."""

Runs = Mapping[int, Trained]
"""Results of one cell by run seed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a cell earned beside the control and the baselines.

    Attributes:
        area: Mean area, in nats times epochs.
        over_slots: Areas relative to the mean of the slots.
        over_random: Areas relative to random choice.
        over_oracle: Areas relative to hearing all seeds of all sites at every graft; ``None`` if
            there are no such runs.
        gains: Test loss below the control's at the verdicts on grafts 3, 5, 10; means, in nats.
    """

    area: Estimate
    over_slots: Estimate
    over_random: Estimate
    over_oracle: Estimate | None
    gains: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CellFigures:
    """Figures of one cell; means over run seeds.

    Attributes:
        cell: Its name.
        what: One line.
        effect: What it earned; ``None`` for the control, and for teaching runs, which have none.
        reward: Mean reward of the first ten grafts, in nats; ``None`` if there were none.
        accuracy: Test accuracy over the last three epochs, in [0, 1].
        parameters: Trainable parameters at the end.
        compute: Operations, all passes on the side included, relative to the control's.
        seconds: Processor time.
        kept: Kernels that were kept.
        judged: Grafts that ended.
        auditioned: Kernels that took part in auditions.
        least_share: Least share of a seed among the grafts at its site, over all run seeds.
        tried: Share of all seeds of all sites that were chosen, or auditioned, in some run.
    """

    cell: str
    what: str
    effect: Effect | None
    reward: float | None
    accuracy: float
    parameters: float
    compute: float
    seconds: float
    kept: float
    judged: float
    auditioned: float
    least_share: float | None
    tried: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """Figures of one task.

    Attributes:
        setup: Its set-up.
        seeds: Number of run seeds.
        null: True for a null task: what random choice gains is not clear of 0.
        cells: Figures of each cell; ``slots`` stands before ``random``.
        homogeneous: Areas of ``auto`` over those of seed 0, where all seeds are alike: 1; ``None``
            if there are no such runs.
        history: Areas of a cell after one earlier run over those of the same without, by its name;
            of the cells that there are.
        placebos: Kernels that cannot help, and how many of them would have been kept; ``None`` if
            there are no such runs.
        sizes: Parameters of the seeds' kernels, by site and blueprint, as they grew.
        curves: Mean gain over the control at the end of each epoch, by cell, in nats.
    """

    setup: Setup
    seeds: int
    null: bool
    cells: tuple[CellFigures, ...]
    homogeneous: Estimate | None
    history: Mapping[str, Estimate]
    placebos: Placebos | None
    sizes: dict[str, dict[str, int]]
    curves: dict[str, list[float]]

    @property
    def sound(self) -> bool | None:
        """True if the homogeneous cells earn the same, within 2 %: a check of the study itself."""
        if self.homogeneous is None:
            return None
        value = self.homogeneous.value
        return value is not None and abs(value - 1) <= _TOLERANCE

    @property
    def alike(self) -> str:
        """Ratio of the homogeneous cells in words."""
        value = self.homogeneous.value if self.homogeneous else None
        return "not defined" if value is None else f"{value:.3f}"


def figures(setup: Setup, results: Iterable[Trained]) -> TaskFigures:
    """Figures of one task, from results of every cell for the same run seeds."""
    found: dict[str, dict[int, Trained]] = {}
    for result in results:
        if result.task == setup.task:
            found.setdefault(result.cell, {})[result.seed] = result
    paired = {name: runs for name, runs in found.items() if _is_paired(name)}
    gains = {name: _gains(found[CONTROL], runs) for name, runs in paired.items()}
    slots = slot_names(setup)
    gains[SLOTS] = np.mean([gains[name] for name in slots], axis=0)
    areas = {name: _area(setup, of_cell) for name, of_cell in gains.items()}
    effects = {
        name: Effect(
            area=mean(area),
            over_slots=ratio(area, areas[SLOTS]),
            over_random=ratio(area, areas[RANDOM]),
            over_oracle=ratio(area, areas[ORACLE]) if ORACLE in areas else None,
            gains=tuple(float(gains[name][:, setup.verdict(n)].mean()) for n in AFTER),
        )
        for name, area in areas.items()
    }
    rows: list[CellFigures] = []
    for cell in cells(setup):
        if cell.name == RANDOM:
            rows.append(_slots_row(rows[-len(slots) :], effects[SLOTS]))
        if cell.name in found:
            row = _row(setup, cell, found[cell.name], found[CONTROL], effects.get(cell.name))
            rows.append(row)
    low, alike = effects[RANDOM].area.low, all(name in areas for name in HOMOGENEOUS)
    return TaskFigures(
        setup=setup,
        seeds=len(found[CONTROL]),
        null=low is not None and low <= 0,
        cells=tuple(rows),
        homogeneous=ratio(*[areas[name] for name in HOMOGENEOUS]) if alike else None,
        history={
            warm: ratio(areas[warm], areas[cold])
            for warm, cold in WITH_AND_WITHOUT
            if warm in areas and cold in areas
        },
        placebos=_placebos(found[PLACEBO].values()) if PLACEBO in found else None,
        sizes=_sizes([found[name] for name in slots]),
        curves={name: of_cell.mean(axis=0).tolist() for name, of_cell in gains.items()},
    )


def _placebos(runs: Iterable[Trained]) -> Placebos:
    made = list(runs)
    return Placebos(
        shadow=Passed.of(one for run in made for one in run.auditions),
        blended=Passed.of(graft for run in made for graft in run.grafts),
    )


def _is_paired(cell: str) -> bool:
    return cell != CONTROL and not cell.startswith("teacher")


def _gains(control: Runs, runs: Runs) -> Array:
    """Control's test loss less the run's; run seeds by epochs, in nats."""
    return np.array(
        [np.subtract(control[seed].test_losses, runs[seed].test_losses) for seed in sorted(runs)]
    )


def _area(setup: Setup, gains: Array) -> Array:
    window = setup.window
    return np.asarray(gains[:, window.start : window.stop].sum(axis=1))


def _row(
    setup: Setup, cell: Cell, by_seed: Runs, control: Runs, effect: Effect | None
) -> CellFigures:
    runs = list(by_seed.values())
    operations = sum(sum(run.flops) for run in runs)
    plain = sum(sum(control[seed].flops) for seed in by_seed)
    rewards = [g["reward"] for run in runs for g in run.grafts[:GRAFTS] if g["reward"] is not None]
    return CellFigures(
        cell=cell.name,
        what=cell.what,
        effect=effect,
        reward=fmean(rewards) if rewards else None,
        accuracy=fmean(fmean(run.test_accuracies[-_LAST:]) for run in runs),
        parameters=fmean(run.parameters for run in runs),
        compute=operations / plain,
        seconds=fmean(run.seconds for run in runs),
        kept=fmean(sum(graft["kept"] for graft in run.grafts) for run in runs),
        judged=fmean(len(run.grafts) for run in runs),
        auditioned=fmean(len(run.auditions) for run in runs),
        least_share=_least_share(setup, runs),
        tried=_tried(setup, runs),
    )


def _slots_row(rows: Sequence[CellFigures], effect: Effect) -> CellFigures:
    """Mean of the cells that take one seed always."""
    rewards = [row.reward for row in rows if row.reward is not None]
    return CellFigures(
        cell=SLOTS,
        what="seed 0 over the orders of the slots: mean of the cells above",
        effect=effect,
        reward=fmean(rewards) if rewards else None,
        accuracy=fmean(row.accuracy for row in rows),
        parameters=fmean(row.parameters for row in rows),
        compute=fmean(row.compute for row in rows),
        seconds=fmean(row.seconds for row in rows),
        kept=fmean(row.kept for row in rows),
        judged=fmean(row.judged for row in rows),
        auditioned=fmean(row.auditioned for row in rows),
        least_share=None,
        tried=None,
    )


def _least_share(setup: Setup, runs: Sequence[Trained]) -> float | None:
    chosen = Counter((one["layer_name"], one["seed_idx"]) for run in runs for one in run.grafts)
    shares = []
    for layer in {layer for layer, _ in chosen}:
        counts = [chosen[layer, seed] for seed in range(len(setup.seeds))]
        shares.append(min(counts) / sum(counts))
    return min(shares, default=None)


def _tried(setup: Setup, runs: Sequence[Trained]) -> float | None:
    if not any(run.choices for run in runs):
        return None
    seen = {(one["layer"], one["seed"]) for run in runs for one in run.choices}
    return len(seen) / (len(setup.layers) * len(setup.seeds))


def _sizes(slots: Sequence[Runs]) -> dict[str, dict[str, int]]:
    grafts = [graft for runs in slots for run in runs.values() for graft in run.grafts]
    found: dict[str, dict[str, int]] = {}
    for graft in sorted(grafts, key=lambda one: (one["layer_name"], one["seed_idx"])):
        found.setdefault(graft["layer_name"], {})[graft["blueprint"]] = graft["parameters"]
    return found
