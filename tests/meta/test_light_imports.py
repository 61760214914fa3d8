"""What must start fast imports nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "redis", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "module",
    [
        "esper",
        "esper.services.tamiyo.seed_selector",
        "esper.services.tamiyo.performance_tracker",
        "esper.services.tamiyo.strategies",
        "esper.services.tamiyo.settings",
        "esper.stores",
        "esper.blueprints",
        "esper.tasks",
        "esper.integrations",
        "esper.cli.main",
    ],
)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
