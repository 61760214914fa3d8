"""Grown networks beside static ones: accuracy, parameters, counted operations, processor time.

Arms of a task, five paired seeds each, all with the task's recipe; test data decided nothing:

  control                the host, un-grown
  grown                  esper train, defaults untouched
  static                 the host made wider, to the grown network's number of parameters
  static, gated          the same with gated linear units, where kernels of that kind can grow
  static, equal compute  static, for as many epochs as cost what the grown run did
  grown, from scratch    the grown network's own architecture, from initial weights
  gromo                  an MLP grown by gromo 0.1.0 (letter, digits), if make bench-peers was run

Operations are those of matrix products, convolutions and attention, forward and backward; of the
grown run everything counts, passes on the side too, of a static network its training alone. Five
seeds of a task take about a quarter of an hour. Seeds are kept in the JSON file: an interrupted
benchmark goes on where it was, unless Esper's sources have changed.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from esper.tasks import TASKS


def parser() -> argparse.ArgumentParser:
    """Command line of ``python -m benchmarks growth``."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(TASKS.names())
    made.add_argument("tasks", nargs="*", metavar="TASK", help=f"by default all: {names}")
    made.add_argument("--seeds", type=_positive, default=5, help="number of run seeds (5)")
    made.add_argument("--first-seed", type=int, default=0, help="the first of them (0)")
    made.add_argument("--epochs", type=_positive, help="length of a run instead of the task's")
    made.add_argument("--budgets", type=_factors, default=(), metavar="F,F,...",
                      help="also grown less static at budgets of F times the host, as "
                      "0.5,1,2,4")  # fmt: skip
    made.add_argument("--only-budgets", action="store_true", help="nothing but --budgets")
    made.add_argument("--json", type=Path, default=Path("build/growth.json"), metavar="FILE",
                      help="results, kept for the next time (build/growth.json)")  # fmt: skip
    made.add_argument("--picture", type=Path, metavar="FILE",
                      help="by default beside the JSON file, .png")  # fmt: skip
    return made


def main(arguments: Sequence[str]) -> None:
    """Measure, print the tables, and write JSON and picture."""
    asked = parser().parse_args(arguments)
    names = asked.tasks or list(TASKS.names())
    for name in names:
        if name not in TASKS.names():
            parser().error(f"no task {name!r}; known: {', '.join(TASKS.names())}")
    measure(asked, names)


def measure(asked: argparse.Namespace, names: Sequence[str]) -> None:
    """Measure what was asked for, task by task."""
    import torch  # noqa: PLC0415 (--help does not wait for it)

    from benchmarks.growth import picture, tables  # noqa: PLC0415
    from benchmarks.growth.kept import Arms, Kept  # noqa: PLC0415
    from benchmarks.growth.measure import PEERS, Measuring  # noqa: PLC0415
    from esper.drawing import style  # noqa: PLC0415

    torch.set_num_threads(1)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    drawn = asked.picture or asked.json.with_suffix(".png")
    style.check(drawn)
    kept = Kept(asked.json)
    if kept.left_out:
        _say(f"{asked.json}: {kept.left_out} outcomes of other sources are measured anew")
    if not PEERS.exists():
        _say("gromo is left out: make .venv-peers/.peers installs it")
    measuring = Measuring(kept, _say, asked.epochs)
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    tasks: dict[str, list[Arms]] = {}
    budgets: list[tables.Row] = []
    for name in names:
        if not asked.only_budgets:
            tasks[name] = [measuring.all_arms(name, seed) for seed in seeds]
        for factor in asked.budgets:
            pairs = [measuring.at_budget(name, seed, factor) for seed in seeds]
            budgets.append(tables.budget_row(name, factor, pairs))
    about = _about(torch.__version__) + f"; seeds {seeds.start} to {seeds.stop - 1}"
    tables.show(about, tasks, budgets)
    kept.write({"about": about, **tables.summary(tasks), "budgets": budgets})
    if tasks:
        picture.draw(tasks, drawn)
        _say(f"{asked.json} and {drawn} are written")


def _about(torch_version: str) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"commit {commit or 'unknown'}, Python {platform.python_version()}, torch "
        f"{torch_version}, one thread of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not >= 1")
    return number


def _factors(text: str) -> tuple[float, ...]:
    found = tuple(float(part) for part in text.split(","))
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text} has a factor that is not > 0")
    return found
