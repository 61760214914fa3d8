"""Batched lab: many runs of the effect study's oracle as one batch, and choosing replayed on them.

Every seed of every site auditions before each graft, as in `esper study effect --cell oracle`.
Hosts, first values, data and verdicts are the product's, and what is heard agrees with it to 1e-6.
The tables are replayed as `python -m benchmarks auditions` does: an index can be developed on
dozens of runs in the time of a few. One core; 16 runs of digits take a minute or two.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time

TASKS = ("digits", "letter")
"""Tasks whose host is an MLP."""


def parser() -> argparse.ArgumentParser:
    """Command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--task", choices=TASKS, default=TASKS[0], help="default: %(default)s")
    made.add_argument("--runs", type=int, default=16, help="run seeds, from 0 on; default: 16")
    made.add_argument("--epochs", type=int, help="of a run; default: those of the effect study")
    made.add_argument("--tables", type=Path, metavar="FILE", help="write the tables into this file")
    return made


def main(arguments: Sequence[str]) -> None:
    """Train, replay, and print a table."""
    asked = parser().parse_args(arguments)
    if asked.runs < 1:
        parser().error(f"--runs is {asked.runs}; it must be at least 1")
    from rich.console import Console  # noqa: PLC0415 (--help does not wait for it)
    from rich.table import Table  # noqa: PLC0415

    from benchmarks import auditions  # noqa: PLC0415
    from benchmarks.lab.runs import Lab, table_of  # noqa: PLC0415
    from esper.runs.train import one_thread  # noqa: PLC0415
    from esper.studies.trained.setups import setup_of  # noqa: PLC0415

    setup = setup_of(asked.task)
    least = setup.verdict(1) + 1
    setup = replace(setup, epochs=setup.epochs if asked.epochs is None else asked.epochs)
    if setup.epochs < least:
        parser().error(f"--epochs is {setup.epochs}; the first verdict needs {least}")
    began = process_time()
    with one_thread():
        found = Lab(setup, range(asked.runs)).run()
    seconds = process_time() - began
    tables = {asked.task: list(map(table_of, found))}
    if asked.tables is not None:
        asked.tables.write_text(json.dumps(tables, separators=(",", ":")) + "\n", encoding="utf-8")
    shown = Table("measure", "value", "goal or baseline", title="lab", title_justify="left")
    shown.add_row(f"{asked.task}: {asked.runs} runs, processor", f"{seconds:.0f} s", "")
    for row in auditions.rows(tables):
        shown.add_row(*row)
    Console().print(shown)
