"""Cells of the effect study, and the runs that fill them.

A cell is a strategy, its settings and the earlier runs that it inherits. Runs of one run seed are
paired: the same initial weights, batches and draws, and the same initial values for the n-th kernel
of a site where the blueprint is the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, final

from esper.contracts.errors import ConfigError
from esper.studies.trained.setups import Setup

CONTROL = "control"
RANDOM = "random"
HOMOGENEOUS = ("homogeneous", "homogeneous-fixed")
WARM = ("warm1", "warm3")
"""Cells that earlier runs have taught."""

LEAST_TEACHER = 1000
"""Run seeds of the study are below; teaching runs have seeds of their own from here on."""

_TEACHERS = 3
_AUTO: Mapping[str, Any] = {"strategy": "auto"}
_ALWAYS: Mapping[str, Any] = {**_AUTO, "audition": "always"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way of choosing.

    Attributes:
        name: Name in tables and files.
        what: One line for reports.
        selection: Section ``seed_selection`` of the settings; empty for the un-grown control.
        policy: Policy that says where; the same for cells that are compared in which seed.
        after: Cell whose run, and those before it, it has the history of; empty for none.
        homogeneous: True if all seeds of a site have the set-up's first blueprint.
        teacher: Number, from 1, of a run that only teaches; 0 for the others.
    """

    name: str
    what: str
    selection: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "heuristic"
    after: str = ""
    homogeneous: bool = False
    teacher: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class EffectRun:
    """One training of the study: a cell of a task, for one run seed.

    Attributes:
        setup: Set-up of the task.
        cell: The cell.
        seed: Run seed that pairs it with the other cells.
        teacher: Run whose history it inherits.
    """

    setup: Setup
    cell: Cell
    seed: int
    teacher: "EffectRun | None" = None

    @property
    def name(self) -> str:
        """Name in the study, as ``letter-s0-warm1``."""
        return f"{self.setup.task}-s{self.seed}-{self.cell.name}"

    @property
    def run_seed(self) -> int:
        """Seed of weights, batches and choices; a teaching run has one of its own."""
        if not self.cell.teacher:
            return self.seed
        return LEAST_TEACHER + _TEACHERS * self.seed + self.cell.teacher - 1

    @property
    def seeds(self) -> list[str]:
        """Blueprint of each seed of every site."""
        names = self.setup.seeds
        return [names[0]] * len(names) if self.cell.homogeneous else list(names)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that determines the run beside the sources, as JSON data."""
        return {
            "setup": asdict(replace(self.setup, seeds=tuple(self.seeds))),
            "cell": self.cell.name,
            "selection": dict(self.cell.selection),
            "policy": self.cell.policy,
            "run_seed": self.run_seed,
            "teacher": self.teacher.spec if self.teacher else None,
        }


def slot_names(setup: Setup) -> list[str]:
    """Names of the cells that take one seed always."""
    return [f"seed{index}" for index in range(len(setup.seeds))]


def cells(setup: Setup) -> list[Cell]:
    """All cells of a task, in the order of the report."""
    found = [Cell(name=CONTROL, what="the host, un-grown")]
    for index, blueprint in enumerate(setup.seeds):
        selection = {"strategy": "fixed", "fixed": {"seed_idx": index}}
        name = slot_names(setup)[index]
        found.append(Cell(name=name, what=f"always {blueprint}", selection=selection))
    found += [
        Cell(name=RANDOM, what="a seed at random", selection={"strategy": "random"}),
        Cell(
            name="always-biggest",
            what="the seed with most parameters",
            selection={"strategy": "always_biggest"},
        ),
        *_homogeneous(setup),
        Cell(name="cold", what="auto, no history", selection=_AUTO),
        Cell(name="audition", what="auto, no history, auditions always", selection=_ALWAYS),
    ]
    for number in range(1, _TEACHERS + 1):
        found.append(
            Cell(
                name=f"teacher{number}",
                what=f"auto, teaching run {number}",
                selection=_AUTO,
                after=f"teacher{number - 1}" if number > 1 else "",
                teacher=number,
            )
        )
    for name in WARM:
        count = int(name.removeprefix("warm"))
        what = f"auto, after {count} earlier run{'s' if count > 1 else ''}"
        found.append(Cell(name=name, what=what, selection=_AUTO, after=f"teacher{count}"))
    return [*found, *_where()]


def _where() -> list[Cell]:
    """Cells whose policy compares the seeds of all sites, so that what was learnt says where."""
    by_name = (
        ("where-cold", "no history", "", 0),
        ("teacher-where", "teaching run", "", 1),
        ("where", "after 1 earlier run", "teacher-where", 0),
    )
    return [
        Cell(
            name=name,
            what=f"auto, {when}; it says where, too",
            selection=_AUTO,
            policy="learned",
            after=after,
            teacher=teacher,
        )
        for name, when, after, teacher in by_name
    ]


def _homogeneous(setup: Setup) -> list[Cell]:
    """Placebos: nothing to choose but, in an audition, the luckiest of four initial values."""
    by_name = (
        (HOMOGENEOUS[0], "auto, no auditions", {**_AUTO, "audition": "never"}),
        (HOMOGENEOUS[1], "seed 0", {"strategy": "fixed"}),
        ("homogeneous-audition", "auto, auditions always", _ALWAYS),
    )
    return [
        Cell(
            name=name,
            what=f"{who}; every seed is {setup.seeds[0]}",
            selection=selection,
            homogeneous=True,
        )
        for name, who, selection in by_name
    ]


def runs(setup: Setup, seed: int) -> list[EffectRun]:
    """Runs of all cells of a task for one run seed; those that teach stand before their pupils.

    Raises:
        ConfigError: if ``seed`` is negative, or one of those that teaching runs have.
    """
    if not 0 <= seed < LEAST_TEACHER:
        raise ConfigError(f"run seed {seed} of the study; it must be >= 0 and < {LEAST_TEACHER}")
    made: dict[str, EffectRun] = {}
    for cell in cells(setup):
        made[cell.name] = EffectRun(
            setup=setup, cell=cell, seed=seed, teacher=made[cell.after] if cell.after else None
        )
    return list(made.values())
