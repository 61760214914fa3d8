"""Tables of a task and of the goals, as rows of text and as JSON data."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.growth.goals import Tasks, better_by, compute_ratio, goals, to_reach, unit
from benchmarks.growth.kept import Arms
from benchmarks.growth.pairs import times

Row = tuple[str, ...]

ARMS = ("arm", "test accuracy", "test loss", "parameters", "epochs", "GFLOP", "÷ static",
        "CPU time ÷ static", "compute to static's accuracy ÷ static")  # fmt: skip
BUDGETS = ("budget", "mean of the pairs [95 %]", "test accuracy", "parameters", "compute ÷ static")
GOALS = ("goal", "must reach", "measured", "")


def arm_rows(pairs: Sequence[Arms]) -> list[Row]:
    """One row an arm: means over the seeds."""
    return [
        (
            arm,
            f"{100 * mean(p[arm].accuracy for p in pairs):.2f} %",
            f"{mean(p[arm].loss for p in pairs):.4f}",
            f"{mean(p[arm].parameters for p in pairs):,.0f}",
            f"{mean(p[arm].epochs for p in pairs):.0f}",
            f"{mean(p[arm].flops for p in pairs) / 1e9:.3g}",
            f"{compute_ratio(pairs, arm):.2f}",
            f"{mean(p[arm].seconds / p['static'].seconds for p in pairs):.2f}",
            times(to_reach(pairs, arm)),
        )
        for arm in _common(pairs)
    ]


def difference_rows(task: str, pairs: Sequence[Arms]) -> list[Row]:
    """Grown less every other arm; > 0 means that grown is better."""
    return [
        (f"{task}: grown less {arm}, {unit(task)}", str(better_by(task, pairs, "grown", arm)))
        for arm in _common(pairs)
        if arm != "grown"
    ]


def budget_row(task: str, factor: float, pairs: Sequence[Arms]) -> Row:
    """Grown less static at one budget."""
    size = mean(p["grown"].parameters for p in pairs)
    won = better_by(task, pairs, "grown", "static")
    grown, static = (100 * mean(p[arm].accuracy for p in pairs) for arm in ("grown", "static"))
    return (
        f"{task}: grown less static, {unit(task)}; budget {factor:g} of the host",
        f"{won}",
        f"{grown:.2f} and {static:.2f} %",
        f"{size:,.0f}",
        f"{compute_ratio(pairs):.2f}",
    )


def kept_line(pairs: Sequence[Arms]) -> str:
    """How many grafts were kept, and of which blueprints."""
    kept = [name for p in pairs for name in p["grown"].kept]
    kinds = ", ".join(f"{name} {kept.count(name)}" for name in sorted(set(kept))) or "none"
    return f"{len(kept)} of {sum(p['grown'].judged for p in pairs)} grafts kept: {kinds}"


def goal_rows(tasks: Tasks) -> list[Row]:
    return [(goal.measure, goal.must, goal.measured, goal.state) for goal in goals(tasks)]


def show(about: str, tasks: Tasks, budgets: Sequence[Row]) -> None:
    """Print all tables; they are wide where they go to a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(about)
    for task, pairs in tasks.items():
        console.print(_table(f"{task}: mean of {len(pairs)} seeds", ARMS, arm_rows(pairs)))
        console.print(f"{kept_line(pairs)}\n")
    if tasks:
        rows = [row for task, pairs in tasks.items() for row in difference_rows(task, pairs)]
        heads = ("difference, > 0 where grown is better", "mean of the pairs, bootstrap 95 %")
        console.print(_table("differences", heads, rows))
    if budgets:
        console.print(_table("budgets", BUDGETS, budgets))
    if tasks:
        console.print(_table("goals", GOALS, goal_rows(tasks)))


def _table(name: str, heads: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(*heads, title=name, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def summary(tasks: Tasks) -> dict[str, Any]:
    """JSON data of all differences and goals."""
    return {
        "differences": {
            task: {
                arm: {**asdict(better_by(task, pairs, "grown", arm)), "unit": unit(task)}
                for arm in _common(pairs)
                if arm != "grown"
            }
            for task, pairs in tasks.items()
        },
        "compute to the static network's accuracy": {
            task: {arm: times(to_reach(pairs, arm)) for arm in _common(pairs)}
            for task, pairs in tasks.items()
        },
        "goals": [{**asdict(goal), "state": goal.state} for goal in goals(tasks)],
    }


def _common(pairs: Sequence[Arms]) -> list[str]:
    """Arms that every seed has."""
    return [arm for arm in pairs[0] if all(arm in p for p in pairs)]
