"""Goals of growth beside what was measured: met, missed, or open while a task is not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.growth.kept import Arms
from benchmarks.growth.pairs import Difference, difference, share_to_reach, times

Tasks = Mapping[str, Sequence[Arms]]
"""Arms of every seed, by task."""

BY_LOSS = frozenset({"kjv"})
"""Tasks judged by their test loss; the others by test accuracy."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and what was measured."""

    measure: str
    must: str
    measured: str
    met: bool | None
    """``None`` while tasks are missing that could decide it."""

    @property
    def state(self) -> str:
        return {True: "met", False: "missed", None: "open"}[self.met]


def better_by(task: str, pairs: Sequence[Arms], ours: str, theirs: str) -> Difference:
    """How much better ours is, > 0 if it is: points of accuracy, or nats of loss, as in `unit`."""
    if task in BY_LOSS:
        return difference([p[theirs].loss for p in pairs], [p[ours].loss for p in pairs])
    return difference(
        [100 * p[ours].accuracy for p in pairs], [100 * p[theirs].accuracy for p in pairs]
    )


def unit(task: str) -> str:
    return "nats" if task in BY_LOSS else "points"


def compute_ratio(pairs: Sequence[Arms], ours: str = "grown", theirs: str = "static") -> float:
    """Counted operations of ours, everything in, divided by theirs; mean of the pairs."""
    return mean(p[ours].flops / p[theirs].flops for p in pairs)


def to_reach(pairs: Sequence[Arms], ours: str = "grown") -> float:
    """Share of the static network's operations at which ours has its accuracy; median of pairs."""
    return median(share_to_reach(p[ours], p["static"]) for p in pairs)


def goals(tasks: Tasks) -> list[Goal]:
    """Every goal, measured or not."""
    won = {task: better_by(task, pairs, "grown", "static") for task, pairs in tasks.items()}
    anew = {t: better_by(t, pairs, "grown", "grown, from scratch") for t, pairs in tasks.items()}
    reached = {task: to_reach(pairs) for task, pairs in tasks.items()}
    three = ("letter", "digits", "mnist1d")
    found = [
        _one(task, won, "≥ 0, lower end ≥ -0.5", lambda d: d.mean >= 0 and d.low >= -0.5)
        for task in three
    ]
    above = {task: won[task].low > 0 for task in three if task in won}
    found.append(
        _count("grown less static: letter, digits, mnist1d", "lower end > 0 on two", above, 2, 3)
    )
    found += [_one(t, won, "≥ -0.5", lambda d: d.mean >= -0.5) for t in ("mnist5k", "resnet")]
    found += [_one(t, won, "interval excludes 0", lambda d: d.low > 0) for t in ("kjv", "resmlp")]
    for task, pairs in tasks.items():
        ratio = compute_ratio(pairs)
        name = f"{task}: compute of the grown run ÷ static"
        found.append(Goal(name, "≤ 1.0", f"{ratio:.2f}", ratio <= 1.0))
    fast = {task: share <= 0.67 for task, share in reached.items()}
    found.append(
        _count("compute to the static network's accuracy ÷ static", "≤ 0.67 on two tasks", fast, 2,
               7, said=", ".join(f"{task} {times(share)}" for task, share in reached.items()))
    )  # fmt: skip
    level = {task: d.mean >= 0 for task, d in anew.items()}
    found.append(
        _count("grown less its architecture from scratch", "≥ 0 on three tasks", level, 3, 7,
               said=", ".join(f"{task} {d.mean:+.2f}" for task, d in anew.items()))
    )  # fmt: skip
    return found


def _one(task: str, won: Mapping[str, Difference], must: str, holds: object) -> Goal:
    name = f"{task}: grown less static, {unit(task)}"
    if task in BY_LOSS:
        name += " of loss won"
    if task not in won:
        return Goal(name, must, "not measured", None)
    return Goal(name, must, str(won[task]), holds(won[task]))  # type: ignore[operator]


def _count(
    name: str, must: str, holds: Mapping[str, bool], needed: int, known: int, said: str = ""
) -> Goal:
    count = sum(holds.values())
    open_still = len(holds) < known and count + known - len(holds) >= needed
    met = True if count >= needed else None if open_still else False
    listed = said or ", ".join(task for task, held in holds.items() if held) or "none"
    return Goal(name, must, f"{count}: {listed}" if not said else listed, met)
