"""``make bench``: every promise of speed and memory, measured beside a baseline, as one table.

Name files to run only those: ``python -m benchmarks selection layer``.
"""

import os
import platform
import subprocess
import sys
from importlib import import_module

import torch
from rich.console import Console
from rich.table import Table

FILES = ("selection", "contextual", "layer", "stores", "cli_start", "train_letter")


def main(names: list[str]) -> None:
    console = Console()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    console.print(
        f"commit {commit or 'unknown'}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for name in names or FILES:
        table = Table("what", "measured", "goal or baseline", title=name, title_justify="left")
        with console.status(f"measuring {name}"):
            for row in import_module(f"benchmarks.{name}").rows():
                table.add_row(*map(str, row))
        console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
