"""``esper train``: start a run, or resume one."""

# ruff: noqa: PLC0415 (imports inside commands: --help must not wait for torch)

from pathlib import Path
from typing import Annotated

import typer

from esper.cli.options import RUNS, Json, Runs, TrainOptions


def train(  # noqa: PLR0913, PLR0917 (one for each option)
    task: Annotated[
        str | None,
        typer.Argument(help="Task to train on; see: esper tasks. Not needed with --resume."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings, a YAML file.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Strategy that chooses the seeds; see: esper strategies.  [default: auto]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of weights, batches and choices: same seed, same run.  [default: 0]"
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs to train for.  [default: the task's]"),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Parameters that growth may add in all.  [default: the task's]"
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Store of the event log; the run learns from the runs that are there already: "
            "sqlite:///history.db or redis://host:6379/0.  [default: the run's folder]",
        ),
    ] = None,
    no_static: Annotated[
        bool,
        typer.Option("--no-static", help="Leave out the static network of the grown one's size."),
    ] = False,
    runs: Runs = RUNS,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.")
    ] = None,
    json: Json = False,
) -> None:
    """Grow a network on a task, beside a control and a static network.

    The control is the same host, un-grown; the static network has the grown
    one's size from the beginning. All train alike.

    Shows each decision when it is taken, and at the end what every graft was worth. The run's
    folder keeps everything; Ctrl-C loses nothing.
    """
    from esper.cli import session

    options = TrainOptions(
        task=task,
        config=config,
        strategy=strategy,
        seed=seed,
        epochs=epochs,
        budget=budget,
        static=False if no_static else None,
        store=store,
    )
    if resume is None:
        session.start(options, runs, json=json)
    else:
        session.resume(resume, options, runs, json=json)
