"""``esper study regret``: strategies compared in simulated environments."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for numpy)

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli.options import Json, Picture, strategy_from
from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.studies.simulated.regret import Contestant, StudySpec, Trial

_BASELINE = "random"
_SLOW = ("neural",)
"""Strategies that take a hundred times as long; they take part only where they are named."""


def regret(  # noqa: PLR0913, PLR0917 (one for each option)
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Strategy that takes part; may be repeated, and set: "
            "thompson:posterior=gaussian,prior_count=2. Random always does.  [default: all that "
            "learn but the slow neural]",
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Environment: A to G, H1 to H15, F-uniform, F-exponential, goals, held-out or "
            "all; may be repeated.  [default: goals, which is A to G]",
        ),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each in each.  [default: 20]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Choices in a run, at most.  [default: 1500]")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="100 runs of 5000 choices, as the goals mean it: half an hour."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same figures.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processes; changes no figure.  [default: one for each core]"
        ),
    ] = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Compare strategies where the best seed is known: what does not knowing it cost?

    Shows the mean regret with its standard error and the worst run, the best strategy first. The
    default size takes a minute or two and is a look: goals are for --full.
    """
    from esper.cli import study_tables, tables
    from esper.drawing import style
    from esper.studies.simulated.environments import Environment, environments
    from esper.studies.simulated.regret import FULL_RUNS, FULL_STEPS, RUNS, STEPS, StudySpec, study

    if full and steps is not None:
        raise ConfigError("--full is 5000 steps; leave --steps out, or --full")
    spec = StudySpec(
        contestants=_contestants(strategy or []),
        environments=tuple(environments(environment or [])),
        runs=(FULL_RUNS if full else RUNS) if runs is None else runs,
        steps=(FULL_STEPS if full else STEPS) if steps is None else steps,
        seed=seed,
    )
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be a whole number >= 1")
    style.check(picture)  # now, not after minutes of work
    with study_tables.progress(tables.err(), "blocks of runs") as told:

        def done(count: int, total: int, environment: Environment) -> None:
            told(count, total, f"environment {environment.name}")

        trials = study(spec, jobs=jobs or os.cpu_count() or 1, done=done)
    if json:
        tables.print_json(_document(spec, trials))
    else:
        study_tables.show_regret(tables.out(), spec, trials, baseline=_BASELINE)
    if picture is not None:
        from esper.pictures.regret import draw_regret

        draw_regret(trials, picture)
        tables.note(f"picture: {picture}")


def _contestants(texts: Sequence[str]) -> tuple["Contestant", ...]:
    """Contestants from options; the baseline always takes part."""
    from esper.strategies import STRATEGIES
    from esper.studies.simulated.regret import Contestant

    def contestant(text: str) -> "Contestant":
        name, _, settings = text.partition(":")
        return Contestant(text, strategy_from(name, settings.split(",") if settings else []))

    learners = [
        name for name in STRATEGIES.names() if STRATEGIES.load(name).learns and name not in _SLOW
    ]
    names = list(texts or learners)
    return tuple(map(contestant, names if _BASELINE in names else [*names, _BASELINE]))


def _document(spec: "StudySpec", trials: Sequence["Trial"]) -> dict[str, Any]:
    import numpy as np

    return {
        "seed": spec.seed,
        "runs": spec.runs,
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
                "median": np.median(trial.paths, axis=0).tolist(),
            }
            for trial in trials
        ],
    }
