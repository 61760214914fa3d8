"""How long a person waits for ``--help``, beside an interpreter that does nothing.

Medians of processes started one after the other, wall clock; the machine is shared, so judge a
figure by the one of ``python -c pass``.
"""

import statistics
import subprocess
import sys
from time import perf_counter

Row = tuple[str, str, str]
"""What was measured, the figure with its unit, what was asked for."""

_STARTS = 9
_COMMANDS = ("", "train", "runs", "inspect", "strategies", "blueprints", "tasks")


def rows() -> list[Row]:
    """The table of this file."""
    goal = "< 300 ms"
    return [
        ("python -c pass", _start("-c", "pass"), "the floor"),
        ("python -c 'import typer'", _start("-c", "import typer"), ""),
        *((f"esper {name} --help".replace("  ", " "), _help(name), goal) for name in _COMMANDS),
        ("esper --version", _start("-m", "esper", "--version"), goal),
    ]


def _help(command: str) -> str:
    return _start("-m", "esper", *command.split(), "--help")


def _start(*arguments: str) -> str:
    times = []
    for _ in range(_STARTS):
        started = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(perf_counter() - started)
    return f"{statistics.median(times) * 1e3:.0f} ms"


if __name__ == "__main__":
    for what, figure, goal in rows():
        print(f"{what:58} {figure:>12}   {goal}")
