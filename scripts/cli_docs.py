"""Write ``docs/cli.md`` from what ``--help`` says: ``python scripts/cli_docs.py``."""

import os
import sys
from pathlib import Path

from typer import Typer
from typer.main import get_command
from typer.testing import CliRunner

from esper.cli.main import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
_HEAD = """# Command line

Made from `--help` by `python scripts/cli_docs.py`; edit the commands, not this page.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 bad input,
130 interrupted (the run can be resumed). `NO_COLOR` is respected.
"""


def page(app: Typer = app) -> str:
    """The whole page, the same on every machine."""
    named = _commands(get_command(app), [])
    sections = [_section(" ".join(["esper", *words]), words) for words in named]
    return "\n".join([_HEAD, *sections])


def _commands(command: object, words: list[str]) -> list[list[str]]:
    found = [words]
    for name, inner in getattr(command, "commands", {}).items():
        found += _commands(inner, [*words, name])
    return found


def _section(title: str, words: list[str]) -> str:
    plain = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1", "ESPER_DEBUG": None}
    shown = CliRunner().invoke(app, [*words, "--help"], prog_name="esper", env=plain)
    if shown.exit_code != 0:
        raise SystemExit(f"{title} --help failed: {shown.output}")
    lines = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
    return f"## `{title}`\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{os.path.relpath(PAGE)}\n")
