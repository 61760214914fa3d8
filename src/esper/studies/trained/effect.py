"""Effect study: what choosing the seed is worth in real training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from esper.contracts.errors import ConfigError
from esper.studies.trained.cells import ALONE, FIXED, HOMOGENEOUS, TOGETHER, EffectRun, runs
from esper.studies.trained.engines import Engine
from esper.studies.trained.setups import FLEET, SETUPS, Setup, setup_of
from esper.studies.trained.study_folder import StudyFolder
from esper.studies.trained.training import Trained

SEEDS = 8
QUICK_SEEDS = 3
QUICK_TASKS = ("digits", "letter")
QUICK_CELLS = (*HOMOGENEOUS, "always-biggest", "cold", "warm1")

FLEET_CELLS = ("always-biggest", FIXED, "auto", ALONE, TOGETHER)
QUICK_FLEET = 12
LEAST_FLEET, MOST_FLEET = 3, 1000

Done = Callable[[int, int, str], None]
"""Told of the runs that are done, of all runs, and of the one that ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectSpec:
    """What is studied.

    Attributes:
        setups: Set-up of each task.
        seeds: Number of run seeds, from 0 on.
        cells: Names of the cells, as `cells` takes them; all if there are none.
        quick: True if it is a look: too small for conclusions.
    """

    setups: tuple[Setup, ...]
    seeds: int
    cells: tuple[str, ...] = ()
    quick: bool = False

    def runs(self) -> list[EffectRun]:
        """All runs, run seed by run seed, so that a study cut short has whole pairs."""
        return [
            run
            for seed in range(self.seeds)
            for setup in self.setups
            for run in runs(setup, seed, self.cells)
        ]


def make_spec(
    tasks: Sequence[str] = (),
    *,
    cells: Sequence[str] = (),
    seeds: int | None = None,
    quick: bool = False,
    epochs: int | None = None,
) -> EffectSpec:
    """Make a spec.

    Args:
        tasks: Names of tasks; by default all seven, or two for a look.
        cells: Names of cells beside those that all are compared with; by default all, or those of
            ``QUICK_CELLS`` for a look.
        seeds: Number of run seeds; by default 8, or 3 for a look.
        quick: Whether it is a look.
        epochs: Length of a run; by default the set-up's.

    Raises:
        ConfigError: if a task has no set-up or is given twice, there is no cell of a name, or a
            number is out of range.
    """
    names = list(tasks) or list(QUICK_TASKS if quick else SETUPS)
    if len(set(names)) < len(names):
        raise ConfigError(f"a task is named twice: {', '.join(names)}; name each once")
    setups = [setup_of(name) for name in names]
    count = (QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"the effect study has {count} run seeds; it needs at least 1")
    if epochs is not None:
        least = max(setup.verdict(1) for setup in setups) + 1
        if epochs < least:
            raise ConfigError(
                f"runs of {epochs} epochs end before the first verdict; take at least {least}"
            )
        setups = [replace(setup, epochs=epochs) for setup in setups]
    look = QUICK_CELLS if quick else ()
    spec = EffectSpec(setups=tuple(setups), seeds=count, cells=tuple(cells or look), quick=quick)
    spec.runs()  # names of cells are read now
    return spec


def make_fleet_spec(
    *,
    cells: Sequence[str] = (),
    seeds: int | None = None,
    quick: bool = False,
    adaptations: int | None = None,
) -> EffectSpec:
    """Make the spec of a study of fleets.

    Args:
        cells: Names of cells beside the control and random choice; by default all but the oracle,
            which hears every arm.
        seeds: Number of run seeds, of a fleet each; by default 8, or 1 for a look.
        quick: Whether it is a look, at fleets of 12.
        adaptations: Length of a fleet, 3 or more; by default 40.

    Raises:
        ConfigError: if there is no cell of a name, or a number is out of range.
    """
    count = (1 if quick else SEEDS) if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"the effect study has {count} run seeds; it needs at least 1")
    usual = QUICK_FLEET if quick else FLEET.adaptations
    length = usual if adaptations is None else adaptations
    if not LEAST_FLEET <= length <= MOST_FLEET:
        raise ConfigError(
            f"a fleet of {length} adaptations; it has {LEAST_FLEET} to {MOST_FLEET} of them"
        )
    setup = replace(FLEET, adaptations=length)
    spec = EffectSpec(setups=(setup,), seeds=count, cells=tuple(cells or FLEET_CELLS), quick=quick)
    spec.runs()
    return spec


def study(
    spec: EffectSpec, folder: StudyFolder, engine: Engine, done: Done | None = None
) -> list[Trained]:
    """Train every run that the folder does not have yet.

    It can be stopped at any time, even by a kill, and called again: runs that have ended are not
    repeated.

    Args:
        spec: What is studied.
        folder: Where results are kept.
        engine: Trains the runs; it is closed at the end.
        done: Callback for progress.

    Returns:
        The results of all runs, in the order of the spec.

    Raises:
        StoreError: if a file of the folder is damaged.
    """
    wanted = spec.runs()
    found = {run.name: kept for run in wanted if (kept := folder.read(run)) is not None}
    waiting = [run for run in wanted if run.name not in found]
    try:
        under_way = 0
        while waiting or under_way:
            while under_way < engine.slots and (run := _ready(waiting, found)) is not None:
                waiting.remove(run)
                engine.start(run, folder.history(run))
                under_way += 1
            ended, result, history = engine.ended()
            under_way -= 1
            folder.write(ended, result, history)
            found[ended.name] = result
            if done is not None:
                done(len(found), len(wanted), ended.name)
    finally:
        engine.close()
    return [found[run.name] for run in wanted]


def _ready(waiting: Sequence[EffectRun], found: dict[str, Trained]) -> EffectRun | None:
    """First run that waits for no other."""
    return next((r for r in waiting if r.teacher is None or r.teacher.name in found), None)
