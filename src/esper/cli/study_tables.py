"""What ``esper study regret`` does: contestants from names, progress, tables, JSON."""

import json as jsonlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from esper.cli import show
from esper.cli.studying import strategy_of
from esper.contracts.errors import ConfigError
from esper.strategies import STRATEGIES
from esper.studies.simulated.environments import Environment, environments
from esper.studies.simulated.regret import (
    FULL_RUNS,
    FULL_STEPS,
    RUNS,
    STEPS,
    Asked,
    Contestant,
    Trial,
    study,
)

_BASELINE = "random"
_SLOW = ("neural",)
"""Takes a hundred times as long as the others; takes part only where it is asked for."""


def asked(
    strategies: Sequence[str],
    names: Sequence[str],
    *,
    runs: int | None,
    steps: int | None,
    full: bool,
    seed: int,
) -> Asked:
    """What the options amount to.

    Raises:
        ConfigError: if a strategy, setting or environment is unknown, or a number is out of range.
    """
    if full and steps is not None:
        raise ConfigError("--full is 5000 steps; leave --steps out, or --full")
    learners = [
        name for name in STRATEGIES.names() if STRATEGIES.load(name).learns and name not in _SLOW
    ]
    contestants = [_contestant(text) for text in (strategies or learners)]
    if _BASELINE not in [one.name for one in contestants]:
        contestants.append(_contestant(_BASELINE))
    return Asked(
        contestants=tuple(contestants),
        environments=tuple(environments(names)),
        runs=(FULL_RUNS if full else RUNS) if runs is None else runs,
        steps=(FULL_STEPS if full else STEPS) if steps is None else steps,
        seed=seed,
    )


def regret(asked: Asked, *, jobs: int | None, picture: Path | None, json: bool) -> None:
    """Let them choose, and show what came of it.

    Raises:
        ConfigError: if ``jobs`` is out of range or the picture cannot be drawn.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be a whole number >= 1")
    if picture is not None:
        from esper.pictures.regret import check  # noqa: PLC0415 (needs matplotlib)

        check(picture)  # now, not after minutes of work
    with _progress(show.err()) as done:
        trials = study(asked, jobs=jobs or os.cpu_count() or 1, done=done)
    if json:
        typer.echo(jsonlib.dumps(document(asked, trials), indent=2))
    else:
        _show(show.out(), asked, trials)
    if picture is not None:
        from esper.pictures.regret import draw_regret  # noqa: PLC0415 (needs matplotlib)

        draw_regret(trials, picture)
        show.err().print(Text(f"picture: {picture}"), soft_wrap=True)


def document(asked: Asked, trials: Sequence[Trial]) -> dict[str, Any]:
    """All figures, for machines."""
    return {
        "seed": asked.seed,
        "runs": asked.runs,
        "trials": [
            {
                "environment": trial.environment.name,
                "what": trial.environment.what,
                "strategy": trial.strategy,
                "steps": trial.steps,
                "regret": trial.mean,
                "stderr": trial.stderr,
                "worst": trial.worst,
                "gain": trial.gain,
                "missed": trial.missed,
                "regrets": trial.regrets.tolist(),
                "at": trial.at.tolist(),
                "median": _median(trial),
            }
            for trial in trials
        ],
    }


def _median(trial: Trial) -> list[float]:
    import numpy as np  # noqa: PLC0415 (only here)

    return [float(value) for value in np.median(trial.paths, axis=0)]


def _contestant(text: str) -> Contestant:
    name, _, settings = text.partition(":")
    return Contestant(text, strategy_of(name, settings.split(",") if settings else []))


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int, Environment], None]]:
    if not console.is_interactive:
        told: set[int] = set()

        def say(done: int, total: int, environment: Environment) -> None:
            tenth = done * 10 // total
            if tenth not in told:
                told.add(tenth)
                say = f"{done} of {total} blocks of runs done, now at {environment.name}"
                console.print(Text(say), soft_wrap=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn())
    with Progress(*columns, console=console, expand=True, transient=True) as bars:
        task = bars.add_task("playing", total=None)

        def show_it(done: int, total: int, environment: Environment) -> None:
            what = f"environment {environment.name}"
            bars.update(task, completed=done, total=total, description=what)

        yield show_it


def _show(console: Console, asked: Asked, trials: Sequence[Trial]) -> None:
    for _, group in groupby(trials, key=lambda trial: trial.environment.name):
        console.print(_table(list(group)))
        console.print()
    runs = f"{asked.runs} run" + ("s" if asked.runs > 1 else "")
    say = (
        f"{runs}, seed {asked.seed}. Regret: mean reward of the best arm less that of the chosen "
        "one, added up; ± is the standard error. Gain: what was earned, relative to choosing "
        "evenly at random."
    )
    if not all(trial.full for trial in trials if trial.environment.goal):
        say += " Goals are for full runs: --full."
    console.print(Text(say, style="dim"))


def _table(trials: list[Trial]) -> RenderableType:
    environment, steps = trials[0].environment, trials[0].steps
    title = f"{environment.name}: {environment.what}; {steps} steps{_goal(trials[0])}"
    right = ("regret ± s.e.", "worst", "x random", "gain")
    judged = ("goal",) if environment.goal and trials[0].full else ()
    made = show.table("strategy", *right, *judged, right=right, title=title)
    baseline = next(trial.mean for trial in trials if trial.strategy == _BASELINE)
    for trial in sorted(trials, key=lambda trial: trial.mean):
        made.add_row(
            trial.strategy,
            _figure(trial.mean) + ("" if trial.stderr is None else f" ± {_figure(trial.stderr)}"),
            _figure(trial.worst),
            f"{trial.mean / baseline:.3f}" if baseline else "-",
            f"{trial.gain:.2f}",
            *[_verdict(trial) for _ in judged],
            style="dim" if trial.strategy == _BASELINE else "",
        )
    return made


def _goal(trial: Trial) -> str:
    goal = trial.environment.goal
    if goal is None or not trial.full:
        return ""
    parts = [f"mean <= {goal.mean:g}"] if goal.mean is not None else []
    parts += [f"worst <= {goal.worst:g}"] if goal.worst is not None else []
    parts += [f"gain >= {goal.gain:g}"] if goal.gain is not None else []
    return f"; goal: {', '.join(parts)}"


def _verdict(trial: Trial) -> Text:
    if trial.strategy == _BASELINE:
        return Text("")
    if trial.missed:
        return Text(f"{' and '.join(trial.missed)} missed", style="yellow")
    return Text("met", style="green")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
