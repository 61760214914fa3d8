"""Measures of the source tree as a table or, with ``--json``, as one JSON object.

``python scripts/house.py [--root CHECKOUT] [--json]``. Standard library only; nothing of Esper is
imported, so that it reads any commit. A room is a folder of ``src/esper``; ``services/tamiyo`` is a
room by itself.
"""

import argparse
import ast
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

GOALS = {
    "largest room, share of source lines": "<= 22 %",
    "files in the largest folder": "<= 16",
    "private helpers per public strategy file": "<= 0.4",
    "names imported by the smallest strategy": "<= 8",
    "exceptions in the import rules": "0",
    "source lines": "<= 23,000",
    "longest module, lines": "<= 400",
    "methods of PerformanceTracker": "<= 22",
    "imports between rooms that run upward": "0",
    "circles among rooms": "0",
}

_ENTRY = re.compile(r"((?:esper)?\.[\w.]+):\w+")  # ".ucb:UCB" is the rest of an f-string
_STRATEGIES = ("strategies", "services/tamiyo/strategies")
_OWN_ROOM = ("services", "tamiyo")


@dataclass(frozen=True)
class Module:
    """One source file: dotted name, path below ``src/esper``, text."""

    name: str
    path: Path
    text: str

    @property
    def lines(self) -> int:
        """Newline characters, as ``wc -l`` counts them."""
        return self.text.count("\n")

    @property
    def room(self) -> str:
        """Folder below ``src/esper``; empty for a file that lies in none."""
        folders = self.path.parts[:-1]
        return "/".join(folders[: 2 if folders[:2] == _OWN_ROOM else 1])

    @cached_property
    def tree(self) -> ast.Module:
        """Syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[str]:
        """Dotted names that are imported, those for type checking included."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return found


class House:
    """Source tree of one checkout.

    Args:
        root: Folder that holds ``pyproject.toml`` and ``src/esper``.
    """

    def __init__(self, root: Path) -> None:
        source = root / "src" / "esper"
        self.modules = [
            Module(_dotted(path.relative_to(source)), path.relative_to(source), path.read_text())
            for path in sorted(source.rglob("*.py"))
        ]
        if not self.modules:
            raise SystemExit(f"{source} holds no Python files; give --root a checkout of Esper")
        settings = tomllib.loads((root / "pyproject.toml").read_text())
        self.rules = settings.get("tool", {}).get("importlinter", {}).get("contracts", [])
        self.by_name = {module.name: module for module in self.modules}

    def measures(self) -> dict[str, Any]:
        """Name of every measure to its value, and to what it stands for where that has a name."""
        total = sum(module.lines for module in self.modules)
        room, in_room = self._rooms().most_common(1)[0]
        folder, in_folder = Counter(m.path.parent for m in self.modules).most_common(1)[0]
        longest = max(self.modules, key=lambda module: module.lines)
        upward, circles = self._upward(), self._circles()
        return {
            "largest room, share of source lines": _named(f"{100 * in_room / total:.1f} %", room),
            "files in the largest folder": _named(in_folder, folder.as_posix()),
            **self._strategies(),
            "exceptions in the import rules": sum(
                len(r.get("ignore_imports", ())) for r in self.rules
            ),
            "source lines": total,
            "source files": len(self.modules),
            "longest module, lines": _named(longest.lines, longest.path.as_posix()),
            "methods of PerformanceTracker": self._methods("PerformanceTracker"),
            "imports between rooms that run upward": _named(len(upward), ", ".join(upward)),
            "circles among rooms": _named(len(circles), "; ".join(circles)),
        }

    def _rooms(self) -> Counter[str]:
        lines: Counter[str] = Counter()
        for module in self.modules:
            if module.room:
                lines[module.room] += module.lines
        return lines

    def _strategies(self) -> dict[str, Any]:
        folder = next((f for f in _STRATEGIES if self._registered(f)), _STRATEGIES[0])
        inside = [
            m
            for m in self.modules
            if m.path.is_relative_to(folder) and m.path.name != "__init__.py"
        ]
        public = [m for m in inside if m.name in self._registered(folder)]
        private = [m for m in inside if m.path.name.startswith("_")]
        smallest = min(public, key=lambda m: (m.lines, len(m.imports)), default=None)
        each = max(len(public), 1)
        return {
            "private helpers per public strategy file": round(len(private) / each, 2),
            "files without a strategy per file with one": round(
                (len(inside) - len(public)) / each, 2
            ),
            "names imported by the smallest strategy": (
                _named(len(smallest.imports), smallest.path.as_posix()) if smallest else 0
            ),
        }

    def _registered(self, folder: str) -> set[str]:
        """Modules in the table of a folder's ``__init__.py``."""
        package = "esper." + folder.replace("/", ".")
        table = self.by_name.get(package)
        nodes = ast.walk(table.tree) if table else ()
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        entries = [entry[1] for text in texts if (entry := _ENTRY.fullmatch(text))]
        return {package + name if name.startswith(".") else name for name in entries}

    def _methods(self, name: str) -> int:
        """Methods of a class; the getter and setter of a property count once."""
        defined = (ast.FunctionDef, ast.AsyncFunctionDef)
        for module in self.modules:
            for node in module.tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return len({part.name for part in node.body if isinstance(part, defined)})
        return 0

    def _edges(self) -> Iterator[tuple[Module, Module]]:
        """Pairs of modules of two rooms, the first importing the second."""
        for module in self.modules:
            for target in module.imports:
                # `from esper.room import module` or `... import name`: the longest that is a file.
                found = self.by_name.get(target) or self.by_name.get(target.rpartition(".")[0])
                if found is not None and found.room != module.room:
                    yield module, found

    def _upward(self) -> list[str]:
        """Imports against the order of the import rules, or between rooms on one floor."""
        order = next((r["layers"] for r in self.rules if r.get("type") == "layers"), [])
        floor = {
            room.strip(" ()"): index for index, row in enumerate(order) for room in row.split("|")
        }
        found = set()
        for one, other in self._edges():
            above, below = (module.name.split(".")[1:2] for module in (one, other))
            if not above or not below or above == below:
                continue
            if floor.get(above[0], -1) >= floor.get(below[0], len(order)):
                found.add(f"{one.name} -> {other.name}")
        return sorted(found)

    def _circles(self) -> list[str]:
        """Sets of rooms that reach one another."""
        to: dict[str, set[str]] = {module.room: set() for module in self.modules}
        for one, other in self._edges():
            to[one.room].add(other.room)
        reach = {room: _reachable(room, to) for room in to if room}
        circles = {
            frozenset(other for other in reach[room] if room in reach.get(other, ()))
            for room in reach
        }
        return sorted(", ".join(sorted(circle)) for circle in circles if circle)


def _reachable(start: str, to: dict[str, set[str]]) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        new = {room for room in to[waiting.pop()] if room} - found
        found |= new
        waiting += new
    return found


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(["esper", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _named(value: object, name: str) -> dict[str, object]:
    return {"value": value, "where": name} if name else {"value": value}


def table(measures: dict[str, Any]) -> str:
    """Measures, their goals and places, in columns."""
    rows = [("measure", "value", "goal", "where")]
    for name, found in measures.items():
        parts = found if isinstance(found, dict) else {"value": found}
        value = parts["value"]
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((name, shown, GOALS.get(name, ""), parts.get("where", "")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the measures of a checkout."""
    parser = argparse.ArgumentParser(description="Measure the source tree.")
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=here, help="checkout  [default: this one]")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args(arguments)
    measures = House(asked.root).measures()
    text = json.dumps(measures, indent=2) if asked.json else table(measures)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
