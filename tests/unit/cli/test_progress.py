"""The progress of a run in a terminal and in a log."""

import re
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from esper.cli.progress import Lines, LiveView, watch
from esper.contracts.seeds import seed_name
from esper.runs import run_folder
from esper.runs.result import Progress
from esper.runs.spec import make_spec
from esper.runs.train import train
from esper.services.tamiyo.settings import config_from

EPOCHS = 6


def shown(
    tmp_path: Path, *, colour: bool, width: int = 80, epochs: int = EPOCHS
) -> tuple[list[str], list[Progress]]:
    """Every frame of the live view of a real run."""
    isolated = {"growth": {"train_epochs": 2, "kernel_share": 0.125}}
    spec = make_spec("digits", epochs=epochs, config=config_from(isolated))
    console = Console(
        file=StringIO(), width=width, height=40, force_terminal=True, no_color=not colour
    )
    view = watch(spec, "digits-s0", console, kept=Counter())
    assert isinstance(view, LiveView)
    frames, seen = [], []

    def note(progress: Progress) -> None:
        view(progress)
        seen.append(progress)
        still = Console(
            file=StringIO(), width=width, force_terminal=True, no_color=not colour, highlight=False
        )
        with still.capture() as captured:
            still.print(view.render())
        frames.append(captured.get())

    with view.showing():
        train(spec, run_folder.create(tmp_path, "digits", 0), on_progress=note)
    assert view.where == f"after {epochs} of {epochs} epochs of the static network"
    return frames, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Progress]]:
    return shown(tmp_path_factory.mktemp("live"), colour=False)


@pytest.mark.trains
def test_it_fits_eighty_columns_and_names_every_seed(
    plain: tuple[list[str], list[Progress]],
) -> None:
    frames, seen = plain
    for frame in frames:
        assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in frame.splitlines()) <= 80
    grown = [progress.part for progress in seen].index("static") - 1
    last, progress = frames[grown], seen[grown]
    assert progress.tamiyo is not None
    for name, layer in progress.tamiyo.layers.items():
        (line,) = [line for line in last.splitlines() if line.startswith(f"\x1b[1m{name}")]
        assert all(blueprint in line for blueprint in layer.seed_blueprints)
    assert progress.report is not None
    assert f"grown {progress.report.used:,} of 2,000 parameters" in last
    assert f"loss {progress.loss:.4f}" in last
    assert f"loss {progress.control_loss:.4f}" in last
    assert f"{EPOCHS} of {EPOCHS} epochs done" in last


@pytest.mark.trains
def test_it_tells_the_last_decision_and_its_reason(
    plain: tuple[list[str], list[Progress]],
) -> None:
    frames, seen = plain
    decided = [p.report.decision for p in seen if p.report is not None and p.report.decision]
    text = " ".join(frames[-1].split())
    seed = seed_name(decided[-1].layer_name, decided[-1].seed_idx, decided[-1].blueprint)
    assert f"chose {seed} at the end of epoch {decided[-1].epoch}: " in text
    assert decided[-1].reason.reason in text


@pytest.mark.trains
def test_signs_tell_the_states_where_there_are_no_colours(
    plain: tuple[list[str], list[Progress]],
) -> None:
    frames, _ = plain
    assert not re.search(r"\x1b\[[\d;]*3\d", "".join(frames))
    signs = {sign for frame in frames for sign in "◔◑●" if frame.count(sign) > 1}
    assert signs == {"◔", "◑", "●"}


def test_colours_tell_them_too(tmp_path: Path) -> None:
    frames, _ = shown(tmp_path, colour=True, width=120, epochs=3)
    assert re.search(r"\x1b\[36m◔ \w+", frames[-1])


def test_a_log_gets_lines() -> None:
    console = Console(file=StringIO())
    view = watch(make_spec("digits"), "digits-s0", console, kept=Counter())
    assert isinstance(view, Lines)
    assert view.where == "before its first epoch"
    view(at_end_of("control", 58, loss=1.5))
    view(at_end_of("control", 59, loss=1.25))
    assert isinstance(console.file, StringIO)
    line = "digits-s0 control: 60 epochs, held-out loss 1.2500 with 350 parameters\n"
    assert console.file.getvalue() == line
    assert view.where == "after 60 of 60 epochs of the control"
    view(at_end_of("static", 59, loss=0.5))
    assert console.file.getvalue() == line + (
        "digits-s0 static: 60 epochs, held-out loss 0.5000 with 350 parameters\n"
    )
    assert view.where == "after 60 of 60 epochs of the static network"


def at_end_of(part: str, epoch: int, *, loss: float) -> Progress:
    return Progress(part=part, epoch=epoch, epochs=60, loss=loss, control_loss=1.25, parameters=350)
