"""Speed, memory and quality, measured beside baselines and printed as one table per file."""

import argparse
import ast
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

DEFAULT = ("selection", "contextual", "layer", "stores", "cli_start", "train_letter")
"""The files of ``make bench``; the others take a quarter of an hour or more."""


def files() -> dict[str, str]:
    """Name of every benchmark that prints a table to its docstring; nothing is imported."""
    found = {}
    here = Path(__file__).parent
    for path in here.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and _makes_table(node) for node in tree.body):
            found[path.stem] = ast.get_docstring(tree) or ""
    for path in here.glob("*/command.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[path.parent.name] = ast.get_docstring(tree) or ""
    return dict(sorted(found.items()))


def _command(name: str) -> bool:
    """True for a benchmark with options of its own."""
    return (Path(__file__).parent / name / "command.py").exists()


def _makes_table(node: ast.FunctionDef) -> bool:
    return node.name == "rows" and len(node.args.args) == len(node.args.defaults)


def parser(chosen: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Command line; its help describes the chosen files, or lists them all."""
    known = files()
    listed = "\n".join(
        f"  {name:<13}{'*' if name in DEFAULT else ' '} {text.partition(chr(10))[0]}"
        for name, text in known.items()
    )
    described = "\n\n".join(f"{name}: {known[name]}" for name in chosen if name in known)
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=described or f"files (* by default; benchmarks.peers: make bench-peers):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("file", nargs="*", help="what to measure; FILE --help says more about one, "
                      "and its options if it has any, which then stands first")  # fmt: skip
    return made


def main(arguments: Sequence[str]) -> None:
    if arguments and _command(arguments[0]):
        import_module(f"benchmarks.{arguments[0]}.command").main(arguments[1:])
        return
    asked = parser([name for name in arguments if not name.startswith("-")])
    names = asked.parse_args(arguments).file or DEFAULT
    unknown = [name for name in names if name not in files()]
    if unknown:
        asked.error(f"no benchmark {unknown[0]!r}; known: {', '.join(files())}")
    measure(names)


def measure(names: Sequence[str]) -> None:
    """Run the files one after another and print their tables."""
    import torch  # noqa: PLC0415 (--help does not wait for it)
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    console.print(
        f"commit {commit or 'unknown'}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for name in names:
        if _command(name):
            import_module(f"benchmarks.{name}.command").main([])
            continue
        table = Table("measure", "value", "goal or baseline", title=name, title_justify="left")
        with console.status(f"measuring {name}"):
            for row in import_module(f"benchmarks.{name}").rows():
                table.add_row(*map(str, row))
        console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
