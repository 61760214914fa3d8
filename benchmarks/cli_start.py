"""Start-up time of every command's ``--help``, beside an interpreter that does nothing.

Medians of processes, wall clock, started in turn so that a busy machine slows all rows alike; judge
a figure by the one of ``python -c pass``.
"""

import statistics
import subprocess
import sys
from time import perf_counter

Row = tuple[str, str, str]
"""Measure, value with its unit, goal."""

_ROUNDS = 9
_GOAL = "< 300 ms"
_COMMANDS = ("train", "runs", "inspect", "strategies", "blueprints", "tasks")


def rows() -> list[Row]:
    """Median start-up times."""
    starts: dict[str, tuple[tuple[str, ...], str]] = {
        "python -c pass": (("-c", "pass"), "the floor"),
        "python -c 'import typer'": (("-c", "import typer"), ""),
        "esper --version": (("-m", "esper", "--version"), _GOAL),
        "esper --help": (("-m", "esper", "--help"), _GOAL),
    }
    for name in _COMMANDS:
        starts[f"esper {name} --help"] = (("-m", "esper", name, "--help"), _GOAL)
    times: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(_ROUNDS):
        for name, (arguments, _) in starts.items():
            times[name].append(_start(arguments))
    return [
        (name, f"{statistics.median(times[name]) * 1e3:.0f} ms", goal)
        for name, (_, goal) in starts.items()
    ]


def _start(arguments: tuple[str, ...]) -> float:
    started = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started
