"""Whoever follows the README gets what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.services.tamiyo.settings import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(_blocks("python"))))
def test_a_python_block_runs(number: int, tmp_path: Path) -> None:
    done = _run([sys.executable, "-W", "error", "-c", _blocks("python")[number]], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    commands = [line.split("#")[0].split()[1:] for line in lines if line.startswith("esper ")]
    assert len(commands) >= 6
    for command in commands:
        done = _run([sys.executable, "-m", "esper", *command], tmp_path)
        assert done.returncode == 0, f"esper {' '.join(command)}\n{done.stderr}"


def test_the_settings_are_settings(tmp_path: Path) -> None:
    for number, block in enumerate(_blocks("yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert load_config(path).growth.budget == 2000


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
