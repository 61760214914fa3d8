"""The measures of the house, counted on a tree small enough to count by hand."""

import json
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

SCRIPT = run_path(str(Path(__file__).parents[2] / "scripts" / "house.py"))

RULES = """
[[tool.importlinter.contracts]]
type = "layers"
layers = ["cli", "services", "(strategies) | stores"]

[[tool.importlinter.contracts]]
type = "independence"
ignore_imports = ["a -> b", "c -> d"]
"""

FILES = {
    "__init__.py": "",
    "cli/__init__.py": "",
    "cli/main.py": "from esper.strategies import ucb\nimport json\n",
    "services/__init__.py": "",
    "services/tamiyo/__init__.py": "",
    "services/tamiyo/engine.py": (
        "class PerformanceTracker:\n"
        "    @property\n"
        "    def one(self): ...\n"
        "    @one.setter\n"
        "    def one(self, value): ...\n"
        "    async def two(self): ...\n"
        "    def _three(self):\n"
        "        def inner(): ...\n"
    ),
    "stores/__init__.py": "",
    "strategies/__init__.py": 'T = ["esper.strategies.ucb:U", f"{__name__}.family.ts:T"]\n',
    "strategies/_sums.py": "",
    "strategies/posteriors.py": "",
    "strategies/ucb.py": "from typing import final, override\nimport esper.strategies._sums\n",
    "strategies/family/__init__.py": "",
    "strategies/family/ts.py": "from a import b\n\nfrom c import d\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(RULES)
    for name, text in FILES.items():
        path = tmp_path / "src" / "esper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def _measures(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    SCRIPT["main"](["--root", str(root), "--json"])
    found = json.loads(capsys.readouterr().out)
    return {k: v["value"] if isinstance(v, dict) else v for k, v in found.items()}


def test_a_small_tree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _measures(root, capsys) == {
        "largest room, share of source lines": "50.0 %",  # 8 of 16, services/tamiyo
        "files in the largest folder": 4,
        "private helpers per public strategy file": 0.5,
        "files without a strategy per file with one": 1.0,
        "names imported by the smallest strategy": 3,
        "exceptions in the import rules": 2,
        "source lines": 16,
        "source files": len(FILES),
        "longest module, lines": 8,
        "methods of PerformanceTracker": 3,
        "imports between rooms that run upward": 0,
        "circles among rooms": 0,
    }


def test_an_import_upward_closes_a_circle(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "src/esper/strategies/_sums.py").write_text("from esper.cli.main import x\n")
    (root / "src/esper/stores/__init__.py").write_text("import esper.strategies\n")  # same floor
    found = _measures(root, capsys)
    assert found["imports between rooms that run upward"] == 2
    assert found["circles among rooms"] == 1


def test_this_tree_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    SCRIPT["main"]([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["measure", "value", "goal", "where"]
    assert len(lines) == 13
