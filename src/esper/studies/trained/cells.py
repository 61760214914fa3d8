"""Cells of the effect study, and the runs that fill them.

A cell is a strategy, its settings and the earlier runs that it inherits. Runs of one run seed are
paired: the same initial weights, batches and draws, and the same initial values for the n-th kernel
of a site where the blueprint is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np

from esper.contracts.errors import ConfigError, unknown_name
from esper.studies.trained.setups import Setup
from esper.tasks.vit import BLOCKS

CONTROL = "control"
RANDOM = "random"
HOMOGENEOUS = ("homogeneous", "homogeneous-fixed")
ORACLE = "oracle"
"""Hears all seeds of all sites before each graft."""

PLACEBO = "placebo"
WARM = ("warm1", "warm3")
"""Cells that earlier runs have taught."""

SILENT = "warm1-silent"
"""``warm1`` without auditions: what they cost, and bring, once one run has taught."""

WITH_AND_WITHOUT = (("warm1", "cold"), (SILENT, "cold-silent"))
"""Cells that differ in whether they have the history of one earlier run."""

LEAST_TEACHER = 1000
"""Run seeds of the study are below; teaching runs have seeds of their own from here on."""

FIXED, ALONE, TOGETHER = "fixed", "audition-alone", "audition"
"""Cells of a fleet."""

DRAWN = "drawn"
"""Arm of the cell that takes one at random."""

GOOD_ARM = "blocks.0.up lora"
"""Arm that earned most in fleets 900 and 901, which are no run seeds of the study by default."""

AUDITIONED = 3
"""Seeds of an audition in a fleet."""

_TEACHERS = 3
_AUTO: Mapping[str, Any] = {"strategy": "auto"}
_FIRST: Mapping[str, Any] = {"strategy": "fixed"}
_ALWAYS: Mapping[str, Any] = {**_AUTO, "audition": "always"}
_NEVER: Mapping[str, Any] = {**_AUTO, "audition": "never"}


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
        every: Blueprint of all seeds of every site; empty for those of the set-up.
        teacher: Number, from 1, of a run that only teaches; 0 for the others.
        arm: In a fleet, the site and blueprint that each adaptation has, and no other, as
            ``"blocks.0.up lora"``; ``DRAWN`` for one drawn for each; empty for all.
        alone: In a fleet, each adaptation without the history of those before.
    """

    name: str
    what: str
    selection: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "heuristic"
    after: str = ""
    every: str = ""
    teacher: int = 0
    arm: str = ""
    alone: bool = False


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
        return [self.cell.every] * len(names) if self.cell.every else list(names)

    def sites(self, number: int) -> tuple[list[str], list[str]]:
        """Sites that may grow, and their seeds, in an adaptation of a fleet, or in the only one."""
        arm = self.cell.arm
        if arm == DRAWN:
            drawn = np.random.default_rng([self.run_seed, number])
            arm = str(drawn.choice(arms(self.setup)))
        if not arm:
            return list(self.setup.layers), self.seeds
        site, blueprint = arm.split(" ")
        return [site], [blueprint]

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that determines the run beside the sources, as JSON data."""
        return {
            "setup": asdict(replace(self.setup, seeds=tuple(self.seeds))),
            "cell": self.cell.name,
            "selection": dict(self.cell.selection),
            "policy": self.cell.policy,
            "arm": self.cell.arm,
            "alone": self.cell.alone,
            "run_seed": self.run_seed,
            "teacher": self.teacher.spec if self.teacher else None,
        }


def slot_names(setup: Setup) -> list[str]:
    """Names of the cells that take one seed always."""
    return [f"seed{index}" for index in range(len(setup.seeds))]


def cells(setup: Setup, wanted: Sequence[str] = ()) -> list[Cell]:
    """Cells of a task, in the order of the report.

    Args:
        setup: Set-up of the task.
        wanted: Names; all by default. Those that others are compared with, or taught by, are in.

    Raises:
        ConfigError: if there is no cell of a name; the message suggests the nearest one.
    """
    found = {cell.name: cell for cell in _all(setup)}
    names = {CONTROL, RANDOM, *(() if setup.adaptations else slot_names(setup))}
    for name in wanted:
        if name not in found:
            raise ConfigError(unknown_name("cell of the effect study", name, found))
        names |= {name, *_teachers_of(found[name], found)}
    return [cell for cell in found.values() if not wanted or cell.name in names]


def _teachers_of(cell: Cell, found: Mapping[str, Cell]) -> list[str]:
    return [cell.after, *_teachers_of(found[cell.after], found)] if cell.after else []


def arms(setup: Setup) -> list[str]:
    """Arms of a fleet: each site with each blueprint."""
    blocks = range(BLOCKS)
    sites = [name.replace("*", str(block)) for block in blocks for name in setup.layers]
    return [f"{site} {blueprint}" for site in dict.fromkeys(sites) for blueprint in setup.seeds]


def _fleet() -> list[Cell]:
    heard = {**_ALWAYS, "most_auditioned": AUDITIONED}
    return [
        Cell(name=CONTROL, what="no kernel: a new head alone"),
        Cell(name=RANDOM, what="an arm at random", selection=_FIRST, arm=DRAWN),
        Cell(
            name="always-biggest",
            what="the site that the heuristic takes, the seed with most parameters",
            selection={"strategy": "always_biggest"},
        ),
        Cell(
            name=FIXED,
            what=f"always {GOOD_ARM}, the best arm of two other fleets",
            selection=_FIRST,
            arm=GOOD_ARM,
        ),
        Cell(
            name="auto",
            what="auto, no auditions, the history of the fleet",
            selection=_NEVER,
            policy="learned",
        ),
        Cell(
            name=ALONE,
            what=f"auto, auditions of {AUDITIONED}, no history",
            selection=heard,
            policy="learned",
            alone=True,
        ),
        Cell(
            name=TOGETHER,
            what=f"auto, auditions of {AUDITIONED}, the history of the fleet",
            selection=heard,
            policy="learned",
        ),
        Cell(
            name=ORACLE,
            what="the best of all arms, each of them heard",
            selection=_ALWAYS,
            policy="learned",
            alone=True,
        ),
    ]


def _all(setup: Setup) -> list[Cell]:
    if setup.adaptations:
        return _fleet()
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
        Cell(
            name=PLACEBO,
            what="auto, auditions always; no seed can help",
            selection=_ALWAYS,
            every="placebo",
        ),
        Cell(name="cold", what="auto, no history", selection=_AUTO),
        Cell(name="cold-silent", what="as cold, without auditions", selection=_NEVER),
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
    what = "as warm1, without auditions"
    found.append(Cell(name=SILENT, what=what, selection=_NEVER, after="teacher1"))
    return [*found, *_where()]


def _where() -> list[Cell]:
    """Cells whose policy compares the seeds of all sites, so that what was learnt says where."""
    by_name = (
        ("where-cold", "no history", "", 0),
        ("teacher-where", "teaching run", "", 1),
        ("where", "after 1 earlier run", "teacher-where", 0),
    )
    what = "the best of all seeds of all sites, each of them heard at every graft"
    oracle = Cell(name=ORACLE, what=what, selection=_ALWAYS, policy="learned")
    return [
        oracle,
        *[
            Cell(
                name=name,
                what=f"auto, {when}; it says where, too",
                selection=_AUTO,
                policy="learned",
                after=after,
                teacher=teacher,
            )
            for name, when, after, teacher in by_name
        ],
    ]


def _homogeneous(setup: Setup) -> list[Cell]:
    """Nothing to choose but, in an audition, the luckiest of four initial values."""
    by_name = (
        (HOMOGENEOUS[0], "auto, no auditions", _NEVER),
        (HOMOGENEOUS[1], "seed 0", {"strategy": "fixed"}),
        ("homogeneous-audition", "auto, auditions always", _ALWAYS),
    )
    return [
        Cell(
            name=name,
            what=f"{who}; every seed is {setup.seeds[0]}",
            selection=selection,
            every=setup.seeds[0],
        )
        for name, who, selection in by_name
    ]


def runs(setup: Setup, seed: int, wanted: Sequence[str] = ()) -> list[EffectRun]:
    """Runs of a task's `cells` for one run seed; those that teach stand before their pupils.

    Raises:
        ConfigError: if ``seed`` is negative, or one of those that teaching runs have; as `cells`.
    """
    if not 0 <= seed < LEAST_TEACHER:
        raise ConfigError(f"run seed {seed} of the study; it must be >= 0 and < {LEAST_TEACHER}")
    made: dict[str, EffectRun] = {}
    for cell in cells(setup, wanted):
        made[cell.name] = EffectRun(
            setup=setup, cell=cell, seed=seed, teacher=made[cell.after] if cell.after else None
        )
    return list(made.values())
