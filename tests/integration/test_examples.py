"""The examples run as they stand, and print what they promise."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.main import app
from tests.frameworks import OF_THEIR_OWN
from tests.rays import under_ray

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


@pytest.mark.trains
def test_adapt_pretrained(printed: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt_pretrained.py", "--steps", "24"])
    text = printed("adapt_pretrained.py")
    rows = re.findall(r"^(\S.*?) +([\d,]+) +([\d.]+) +([\d.]+)%$", text, flags=re.MULTILINE)
    assert [row[0] for row in rows] == [
        *("linear probe", "LoRA, rank 1", "grown, a third of LoRA", "grown, as many as LoRA"),
        "full fine-tuning",
    ]
    sizes = [int(row[1].replace(",", "")) for row in rows]
    assert sizes[0] < sizes[2] <= 490 + 0.33 * 2592 < sizes[3] <= sizes[1] < sizes[4]
    losses = [float(row[2]) for row in rows]
    assert losses[3] < losses[0]
    assert number(r"of weights, ([\d.]+) x parameters", text) <= 1.1
    assert "loaded onto a fresh host: outputs are equal, bit for bit" in text
    assert "switched off: the host is what it was, bit for bit" in text
    assert "merged: a plain VisionTransformer" in text


def test_frozen_host(printed: Callable[[str], str]) -> None:
    text = printed("frozen_host.py")
    before = number(r"trained and frozen: test loss ([\d.]+)", text)
    assert number(r"grown: test loss ([\d.]+)", text) < 0.9 * before
    assert 0 < number(r", (\d+) parameters added", text) <= 800
    assert "the host is what it was, bit for bit" in text
    assert "saved and loaded: outputs are equal" in text


@pytest.mark.trains
@pytest.mark.parametrize("name", ["lightning_loop.py", "accelerate_loop.py"])
@pytest.mark.filterwarnings(*OF_THEIR_OWN)
def test_digits_in_a_framework(name: str, printed: Callable[[str], str]) -> None:
    text = printed(name)
    assert int(re.findall(r", (\d+) of \d+ parameters grown", text)[-1]) > 0
    assert number(r"test loss: ([\d.]+)", text) < 0.5


@pytest.mark.trains
def test_a_transformer_in_a_trainer(printed: Callable[[str], str]) -> None:
    text = printed("trainer_loop.py")
    assert "epoch 7: held-out loss" in text
    assert "saved and loaded: outputs are equal" in text


SWEPT = r"(\d+) epochs, grafts: \d+ kept, \d+ ended otherwise; finished"


@pytest.mark.trains
def test_an_optuna_sweep_beside_one_store(printed: Callable[[str], str]) -> None:
    text = printed("optuna_sweep.py")
    epochs = [int(count) for count in re.findall(SWEPT, text)]
    states = re.findall(r"trial \d (\w+):", text)
    assert len(epochs) == len(states) == 4
    assert all((state == "pruned") == (n < 6) for state, n in zip(states, epochs, strict=True))
    assert number(r"best held-out loss: ([\d.]+)", text) < 2


@pytest.mark.dist
@pytest.mark.trains
def test_a_ray_sweep_beside_one_store(tmp_path: Path) -> None:
    example = str(EXAMPLES / "ray_sweep.py")
    text = under_ray(f"import runpy; runpy.run_path({example!r}, run_name='__main__')", tmp_path)
    assert re.findall(SWEPT, text) == ["5", "5"]
    assert number(r"best held-out loss: ([\d.]+)", text) < 2


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
