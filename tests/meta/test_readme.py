"""Whoever follows the README gets what it says."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.main import app
from esper.services.tamiyo.settings import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.trains
@pytest.mark.parametrize("number", range(len(_blocks("python"))))
def test_a_python_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(_blocks("python")[number], f"block {number} of README.md", "exec")
    exec(code, {"__name__": "__main__"})


def _soon_over(command: list[str]) -> list[str]:
    """The command as written, but for how many epochs it trains."""
    return [
        "4" if before == "--epochs" else word
        for before, word in zip(["", *command], command, strict=False)
    ]


@pytest.mark.slow
def test_the_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    commands = [line.split("#")[0].split()[1:] for line in lines if line.startswith("esper ")]
    assert len(commands) >= 6
    for command in map(_soon_over, commands):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, f"esper {' '.join(command)}\n{done.output}"


def test_the_settings_are_settings(tmp_path: Path) -> None:
    for number, block in enumerate(_blocks("yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert load_config(path).growth.budget_for(0) == 2000


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
