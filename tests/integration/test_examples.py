"""The examples run as they stand, and print what they promise."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.main import app

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert list(tmp_path.iterdir()) == []  # nothing is left behind
        return capsys.readouterr().out

    return run


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[1])


@pytest.mark.trains
def test_plain_loop(printed: Callable[[str], str]) -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8").splitlines()) < 60
    text = printed("plain_loop.py")
    assert text.count("held-out loss ") > 24
    assert "kept: worth +" in text
    without = number(r"test loss: ([\d.]+) without growth", text)
    grown = number(r"without growth, ([\d.]+) with it", text)
    assert grown < without
    assert number(r"gain: ([\d.]+)", text) == pytest.approx(without - grown, abs=2e-4)
    assert number(r"parameters: 460 (\d+)", text) > 460


def test_frozen_host(printed: Callable[[str], str]) -> None:
    text = printed("frozen_host.py")
    before = number(r"trained and frozen: test loss ([\d.]+)", text)
    assert number(r"grown: test loss ([\d.]+)", text) < 0.9 * before
    assert 0 < number(r", (\d+) parameters added", text) <= 800
    assert "the host is what it was, bit for bit" in text
    assert "saved and loaded: outputs are equal" in text


def test_a_width_beside_a_wrapped_layer_is_refused(tmp_path: Path) -> None:
    text = (EXAMPLES / "layers.yaml").read_text(encoding="utf-8")
    (tmp_path / "w.yaml").write_text(text.replace("  seeds:", "  widen: [fc1]\n  seeds:"))
    asked = ("letter", "--config", str(tmp_path / "w.yaml"), "--runs", str(tmp_path / "runs"))
    done = CliRunner().invoke(app, ["train", *asked, "--epochs", "1"])
    assert done.exit_code == 2
    assert "width 'fc1' cannot grow: 'fc1' is wrapped" in done.output


def test_layers_of_a_task_are_wrapped_as_a_file_says(tmp_path: Path) -> None:
    asked = ("letter", "--epochs", "4", "--no-static", "--config", str(EXAMPLES / "layers.yaml"))
    done = CliRunner().invoke(app, ["train", *asked, "--runs", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    seeds = ["lowrank", "bottleneck", "gate", "glu"]
    assert document["spec"]["slots"] == dict.fromkeys(["fc1", "fc2", "fc3"], seeds)
    constraints = document["spec"]["config"]["seed_selection"]["constraints"]
    assert constraints["min_dormant_epochs"] == 5  # the task's own is 0
    result = document["result"]
    assert result["static"] is None
    assert {graft["layer_name"] for graft in result["grafts"]} <= {"fc1", "fc2", "fc3"}
