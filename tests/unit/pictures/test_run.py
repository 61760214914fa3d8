"""The picture of a run: what it shows, where it can be written, and that it leaves no trace."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from typer.testing import CliRunner

from esper.cli.main import app
from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.contracts.seeds import SeedState
from esper.pictures import run as picture
from esper.pictures.rewards import rewards
from esper.pictures.run import Span, draw, spans
from esper.runs.run_folder import RunFolder
from esper.runs.run_reader import Run

EPOCHS = 12


def run(tmp_path: Path, *, finished: bool = True, losses: bool = True) -> Run:
    scores = {"test_accuracy": 0.75, "parameters": 1234}
    return Run(
        folder=RunFolder(tmp_path),
        spec={
            "task": "digits",
            "seed": 3,
            "epochs": EPOCHS,
            "layers": ["fc1", "head"],
            "seeds": ["glu", "gate"],
            "config": {"seed_selection": {"strategy": "thompson"}},
        },
        control={"losses": [2.0 - 0.1 * i for i in range(EPOCHS)]} if losses else {},
        result={"grown": scores, "control": scores} if finished else None,
    )


def log(epochs: int = EPOCHS, *, kept: bool = True) -> list[Event]:
    """The events of one graft: chosen at the end of epoch 1, judged at the end of epoch 4."""
    end = SeedState.FOSSILIZED if kept else SeedState.CULLED
    steps = {
        1: (SeedState.GERMINATED, SeedState.TRAINING),
        3: (SeedState.BLENDING,),
        4: (SeedState.HOLDING, end),
        9: (SeedState.DORMANT,),
    }
    events = []
    for epoch in range(epochs):
        for state in steps.get(epoch, ()):
            data: dict[str, Any] = {"epoch": epoch, "layer": "fc1", "seed": 1, "new": str(state)}
            events.append(Event(f"{epoch}{state}", "lifecycle", data=data))
        if epoch == 4:
            events.append(Event("graft", "graft", data={"epoch": epoch, "kept": kept}))
        loss = {"epoch": epoch, "holdout_loss": 2.0 / (epoch + 1)}
        events.append(Event(f"epoch{epoch}", "epoch", data=loss))
    return events


def test_states_follow_one_another_without_a_gap(tmp_path: Path) -> None:
    found = spans(run(tmp_path), log())
    assert list(found) == [
        ("fc1", 0, "glu"), ("fc1", 1, "gate"), ("head", 0, "glu"), ("head", 1, "gate"),
    ]  # fmt: skip
    assert found["head", 0, "glu"] == [Span(0, EPOCHS, SeedState.DORMANT, 0)]
    assert found["fc1", 1, "gate"] == [
        Span(0, 2, SeedState.DORMANT, 0),
        Span(2, 4, SeedState.TRAINING, 0),
        Span(4, 5, SeedState.BLENDING, 0),
        Span(5, 10, SeedState.FOSSILIZED, 0),
        Span(10, EPOCHS, SeedState.DORMANT, 1),
    ]


def test_a_culled_seed_is_dormant_without_a_kernel_kept(tmp_path: Path) -> None:
    row = spans(run(tmp_path), log(kept=False))["fc1", 1, "gate"]
    assert row[-2:] == [Span(5, 10, SeedState.CULLED, 0), Span(10, EPOCHS, SeedState.DORMANT, 0)]


def words(path: Path) -> str:
    """The words of an SVG; matplotlib writes each as a comment beside its outlines."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    nodes: list[Any] = list(ET.parse(path, parser=parser).iter())
    return "\n".join(node.text for node in nodes if node.tag is ET.Comment)


def test_it_says_what_was_run_and_what_came_of_it(tmp_path: Path) -> None:
    draw(run(tmp_path), log(), tmp_path / "run.svg")
    text = words(tmp_path / "run.svg")
    assert "digits, seed 3, thompson" in text
    assert "grown 75.0 % with 1,234 parameters" in text
    for word in ("control", "blend starts", "kept", "fc1:1  gate", "head:0  glu", "epochs trained"):
        assert word in text


def test_it_shows_what_each_seed_earned_and_from_how_many_grafts(tmp_path: Path) -> None:
    where = {"layer": "fc1", "seed": 1}
    events = [
        Event("a", "outcome", data={**where, "reward": 0.3}),
        Event("b", "failure", data=where),
        Event("c", "outcome", data={"layer": "head", "seed": 0, "reward": -0.1}),
    ]
    found = rewards(events)
    assert {seat: seed.rewards for seat, seed in found.items()} == {
        ("fc1", 1): [0.3, 0.0], ("head", 0): [-0.1]
    }  # fmt: skip
    draw(run(tmp_path), [*log(), *events], tmp_path / "run.svg")
    assert "mean reward, 95 %, n" in words(tmp_path / "run.svg")


def test_an_unfinished_run_can_be_drawn(tmp_path: Path) -> None:
    draw(run(tmp_path, finished=False), log(5), tmp_path / "part.svg")
    assert "after 5 of 12 epochs" in words(tmp_path / "part.svg")
    draw(run(tmp_path, finished=False, losses=False), [], tmp_path / "empty.png")


def test_a_png_is_wide_enough_and_nothing_global_has_changed(tmp_path: Path) -> None:
    asked = [name for name in mpl.rcParams if name != "backend"]  # to read that one sets it
    before = [mpl.rcParams[name] for name in asked]
    draw(run(tmp_path), log(), tmp_path / "run.png")
    head = (tmp_path / "run.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") >= 1000
    assert [mpl.rcParams[name] for name in asked] == before
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("finite", [0.0, -1.0])
def test_losses_that_have_no_logarithm_are_drawn(tmp_path: Path, finite: float) -> None:
    events = [*log(), Event("last", "epoch", data={"epoch": EPOCHS, "holdout_loss": finite})]
    events.append(Event("nan", "epoch", data={"epoch": EPOCHS + 1, "holdout_loss": None}))
    draw(run(tmp_path), events, tmp_path / "run.png")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf, not 'run\.gif'"):
        draw(run(tmp_path), log(), tmp_path / "run.gif")
    draw(run(tmp_path), log(), tmp_path / "run.PDF")


def test_without_matplotlib_the_run_succeeds_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    hint = 'a picture needs matplotlib: pip install "esper-morph[plot]"'
    with pytest.raises(ConfigError, match=r"esper-morph\[plot\]"):
        picture.draw(run(tmp_path), log(), tmp_path / "run.png")
    done = CliRunner().invoke(app, ["train", "digits", "--epochs", "1", "--runs", str(tmp_path)])
    assert done.exit_code == 0
    assert hint in done.stderr
    assert not (tmp_path / "digits-s0" / "run.png").exists()
