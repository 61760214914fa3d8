"""Effect study: what choosing the seed is worth in real training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from esper.contracts.errors import ConfigError
from esper.studies.trained.cells import EffectRun, runs
from esper.studies.trained.engines import Engine
from esper.studies.trained.setups import SETUPS, Setup, setup_of
from esper.studies.trained.study_folder import StudyFolder
from esper.studies.trained.training import Trained

SEEDS = 8
QUICK_SEEDS = 3
QUICK_TASKS = ("digits", "letter")

Done = Callable[[int, int, str], None]
"""Told of the runs that are done, of all runs, and of the one that ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectSpec:
    """What is studied.

    Attributes:
        setups: Set-up of each task.
        seeds: Number of run seeds, from 0 on.
        quick: True if it is a look: too small for conclusions.
    """

    setups: tuple[Setup, ...]
    seeds: int
    quick: bool = False

    def runs(self) -> list[EffectRun]:
        """All runs, run seed by run seed, so that a study cut short has whole pairs."""
        return [
            run for seed in range(self.seeds) for setup in self.setups for run in runs(setup, seed)
        ]


def make_spec(
    tasks: Sequence[str] = (),
    *,
    seeds: int | None = None,
    quick: bool = False,
    epochs: int | None = None,
) -> EffectSpec:
    """Make a spec.

    Args:
        tasks: Names of tasks; by default all seven, or two for a look.
        seeds: Number of run seeds; by default 8, or 3 for a look.
        quick: Whether it is a look.
        epochs: Length of a run; by default the set-up's.

    Raises:
        ConfigError: if a task has no set-up, is given twice, or a number is out of range.
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
    return EffectSpec(setups=tuple(setups), seeds=count, quick=quick)


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
