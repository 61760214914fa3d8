"""The picture of a run: what it shows, where it can be written, and that it leaves no trace."""

import subprocess
import sys
from dataclasses import replace
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
from esper.drawing.rewards import rewards
from esper.drawing.run_log import Span, spans
from esper.pictures.run import draw
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
        result=dict.fromkeys(("grown", "control", "static"), scores) if finished else None,
        static={"losses": [1.5 - 0.1 * i for i in range(EPOCHS)]} if finished else {},
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
    found = spans(run(tmp_path).slots, log())
    assert list(found) == [
        ("fc1", 0, "glu"), ("fc1", 1, "gate"), ("head", 0, "glu"), ("head", 1, "gate"),
    ]  # fmt: skip
    assert found["head", 0, "glu"] == [Span(0, EPOCHS, SeedState.DORMANT, 0)]
    assert found["fc1", 1, "gate"] == [
        Span(0, 1, SeedState.DORMANT, 0),
        Span(1, 3, SeedState.TRAINING, 0),
        Span(3, 4, SeedState.BLENDING, 0),
        Span(4, 9, SeedState.FOSSILIZED, 0),
        Span(9, EPOCHS, SeedState.DORMANT, 1),
    ]


def test_a_culled_seed_is_dormant_without_a_kernel_kept(tmp_path: Path) -> None:
    row = spans(run(tmp_path).slots, log(kept=False))["fc1", 1, "gate"]
    assert row[-2:] == [Span(4, 9, SeedState.CULLED, 0), Span(9, EPOCHS, SeedState.DORMANT, 0)]


def test_a_kernel_culled_in_the_last_epoch_is_drawn_as_culled(tmp_path: Path) -> None:
    row = spans(run(tmp_path).slots, log(5, kept=False))["fc1", 1, "gate"]
    assert row[-2:] == [Span(3, 4, SeedState.BLENDING, 0), Span(4, 5, SeedState.CULLED, 0)]


def test_a_kernel_under_way_at_the_end_is_drawn_up_to_it(tmp_path: Path) -> None:
    unfinished = [event for event in log(5) if event.op_id != "epoch4"]
    for events in (log(4), unfinished):  # what an interrupted epoch has done is done again
        row = spans(run(tmp_path).slots, events)["fc1", 1, "gate"]
        assert row[-2:] == [Span(1, 3, SeedState.TRAINING, 0), Span(3, 4, SeedState.BLENDING, 0)]


def test_a_kernel_that_was_rolled_back_is_culled_and_marked(tmp_path: Path) -> None:
    events = log(5, kept=False)
    events.insert(-1, Event("back", "rollback", data={"epoch": 4, "to_epoch": 3, "why": "ill"}))
    assert spans(run(tmp_path).slots, events)["fc1", 1, "gate"][-1].state is SeedState.CULLED
    draw(run(tmp_path, finished=False), events, tmp_path / "run.svg")
    text = words(tmp_path / "run.svg")
    assert "host rolled back" in text
    assert "kernel culled" in text
    assert "kernel kept" not in text.replace("kernel kept before", "")


def test_epochs_are_whole_and_counted_from_nought(tmp_path: Path) -> None:
    draw(run(tmp_path), log(), tmp_path / "run.svg")
    shown = words(tmp_path / "run.svg").split("\n")
    first = [word.strip() for word in shown].index("0")
    assert [word.strip() for word in shown[first : first + 3]] == ["0", "1", "2"]


def words(path: Path) -> str:
    """The words of an SVG; matplotlib writes each as a comment beside its outlines."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    nodes: list[Any] = list(ET.parse(path, parser=parser).iter())
    return "\n".join(node.text for node in nodes if node.tag is ET.Comment)


def test_it_says_what_was_run_and_what_came_of_it(tmp_path: Path) -> None:
    draw(run(tmp_path), log(), tmp_path / "run.svg")
    text = words(tmp_path / "run.svg")
    assert "digits, seed 3, thompson" in text
    assert "(parameters): grown 75.0 % (1,234),  static 75.0 % (1,234),  control 75.0 %" in text
    for word in (
        "control",
        "static",
        "blending starts",
        "kernel kept",
        "layer fc1, seed 1 (gate)",
        "epoch, from 0",
    ):
        assert word in text


def test_it_shows_what_each_seed_earned_and_from_how_many_grafts(tmp_path: Path) -> None:
    where = {"layer": "fc1", "seed": 1}
    events = [
        Event("a", "outcome", data={**where, "reward": 0.3}),
        Event("b", "failure", data=where),
        Event("c", "outcome", data={"layer": "head", "seed": 0, "reward": -0.1}),
    ]
    found = rewards(events)
    assert {key: seed.rewards for key, seed in found.items()} == {
        ("fc1", 1): [0.3, 0.0], ("head", 0): [-0.1]
    }  # fmt: skip
    draw(run(tmp_path), [*log(), *events], tmp_path / "run.svg")
    assert "95 % interval" in words(tmp_path / "run.svg")


def test_a_run_without_a_static_network_is_drawn_without_one(tmp_path: Path) -> None:
    old = run(tmp_path)
    assert old.result is not None
    alone = {name: scores for name, scores in old.result.items() if name != "static"}
    draw(replace(old, result=alone, static={}), log(), tmp_path / "run.svg")
    assert "static" not in words(tmp_path / "run.svg")


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


def test_drawing_does_not_import_what_opens_windows(tmp_path: Path) -> None:
    """In a process of its own: other tests import pyplot."""
    said = (
        "import sys, esper.pictures.run; from pathlib import Path; "
        "from esper.drawing.style import figure, save; path = Path('a.png'); "
        "save(figure(path, 2, 1), path); print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", said]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"
    assert (tmp_path / "a.png").exists()


def test_the_curve_goes_on_where_growth_measured_nothing_any_more(tmp_path: Path) -> None:
    logged = [
        replace(event, data=dict(event.data, holdout_loss=None))
        if event.kind == "epoch" and event.data["epoch"] > 5
        else event
        for event in log()
    ]
    whole = replace(run(tmp_path), grown={"losses": [None, *(0.777 for _ in range(EPOCHS - 1))]})
    draw(whole, logged, tmp_path / "whole.svg")
    assert "0.777" in words(tmp_path / "whole.svg")
    draw(run(tmp_path), logged, tmp_path / "older.svg")
    assert f"{2.0 / 6:.3f}" in words(tmp_path / "older.svg")


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
        draw(run(tmp_path), log(), tmp_path / "run.png")
    done = CliRunner().invoke(app, ["train", "digits", "--epochs", "1", "--runs", str(tmp_path)])
    assert done.exit_code == 0
    assert hint in done.stderr
    assert not (tmp_path / "digits-s0" / "run.png").exists()
