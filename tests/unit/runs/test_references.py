"""The networks beside a grown one; a frozen host is trained in full, too."""

from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from esper.cli import tables
from esper.runs import run_folder
from esper.runs.result import Progress, networks
from esper.runs.spec import make_spec
from esper.runs.train import train


@pytest.mark.parametrize(
    ("task", "static", "names"),
    [
        ("digits", True, ["control", "grown", "static"]),
        ("digits", False, ["control", "grown"]),
        ("transfer", True, ["control", "grown", "static", "full"]),
        ("transfer_far", False, ["control", "grown"]),
    ],
)
def test_the_networks_of_a_run(task: str, *, static: bool, names: list[str]) -> None:
    assert networks(task, static=static) == names


@pytest.mark.trains
def test_a_frozen_host_is_trained_in_full_and_stands_in_the_table(tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = run_folder.create(tmp_path, "transfer", 0)
    result = train(make_spec("transfer", epochs=1), folder, on_progress=seen.append)
    assert [progress.part for progress in seen] == ["control", "grown", "static", "full"]
    assert result.full is not None
    assert (result.full.parameters, result.control.parameters) == (88570, 88570)
    assert result.full.test_loss != result.control.test_loss
    made = Console(width=100, record=True, file=StringIO())
    made.print(tables.result(asdict(result)))
    text = made.export_text()
    rows = [line.split()[:2] for line in text.splitlines()]
    assert ["full", "88,570"] in rows
    assert ["less", "full"] in rows
    assert "full: the host, trained in full at a rate of its own" in " ".join(text.split())
    again = train(make_spec("transfer", epochs=1), folder, on_progress=seen.append)
    assert again == result
    assert len(seen) == 4  # nothing trains again
