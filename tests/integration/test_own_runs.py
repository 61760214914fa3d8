"""Runs of a user's own loop, seen from outside: the picture, the list, the log of one."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.main import app
from esper.contracts.events import Event
from esper.drawing.run_log import shown_of_log
from esper.runs.own_runs import list_runs
from esper.stores import open_store
from tests.unit.pictures.test_run import words
from tests.unit.services.small_run import CULLED, KEPT, SmallRun, settings

EPOCHS = {"first": 2, "second": 2, "third": 7}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finished, one that was closed, and one that a crash left."""
    path = tmp_path_factory.mktemp("store") / "history.db"
    config = settings(train_epochs=1, blend_epochs=2, ramp=1.0)
    for name, epochs in EPOCHS.items():
        options = {"store": f"sqlite:///{path}", "scope": "net", "run": name}
        engine = SmallRun(config=config, options=options, worth=[KEPT, CULLED]).run(epochs).engine
        if name == "first":
            engine.finish()
        if name == "third":
            engine.picture(path.with_name("own.svg"))
            engine.journal.close()
        else:
            engine.close()
    return path


def esper(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_runs_of_a_store_are_listed(place: Path) -> None:
    found = list_runs(str(place))
    assert [(one.scope, one.run, one.model, one.epochs) for one in found] == [
        ("net", name, "Sequential", epochs) for name, epochs in EPOCHS.items()
    ]
    assert [one.end for one in found] == ["finished", "closed", ""]
    assert all(one.last_seen for one in found)
    assert (found[0].culled, found[2].kept + found[2].culled > 1) == (1, True)
    shown = esper("runs", place)
    assert re.search(r"first +Sequential +0 +2 +\d+ +\d+ +finished +20\d\d-", shown)
    assert json.loads(esper("runs", place, "--json")) == [asdict(one) for one in found]


def test_a_picture_of_an_own_run_shows_losses_seeds_and_ends(place: Path) -> None:
    esper("inspect", place, "--run", "third", "--picture", place.with_name("told.svg"))
    ours, told = (words(place.with_name(name)) for name in ("own.svg", "told.svg"))
    assert ours == told
    for word in ("Sequential, run third, seed 0", "7 epochs; grafts:", "layer fc1, seed 1 (bottle",
                 "held-out loss", "kernel kept", "kernel culled"):  # fmt: skip
        assert word in ours
    esper("inspect", place, "--picture", place.with_name("latest.svg"))
    assert words(place.with_name("latest.svg")) == told


def test_the_log_of_an_own_run_is_printed(place: Path) -> None:
    lines = [
        json.loads(line)
        for line in esper("inspect", place, "--run", "first", "--events").split("\n")
        if line
    ]
    assert (lines[0]["kind"], lines[-1]["kind"]) == ("run", "end")
    assert not [line for line in lines if line["kind"] == "clock"]
    assert "Grafts" in esper("inspect", place, "--run", "first")


def test_a_log_of_an_older_version_is_listed_and_drawn(tmp_path: Path) -> None:
    old = [
        json.loads(line)
        for line in Path(__file__)
        .parents[1]
        .joinpath("golden/letter.jsonl")
        .read_text()
        .split("\n")
        if line and '"kind": "run"' not in line
    ]
    with open_store(f"sqlite:///{tmp_path / 'old.db'}") as store:
        store.append([Event(**{**one, "number": at}) for at, one in enumerate(old)])
    (run,) = list_runs(str(tmp_path / "old.db"))
    assert (run.model, run.seed, run.epochs, run.end, run.last_seen) == ("", None, 12, "", None)
    shown = shown_of_log([Event(**one) for one in old])
    assert ("fc3", 0, "bottleneck") in shown.seeds
    esper("inspect", tmp_path / "old.db", "--picture", tmp_path / "old.png")


def test_what_cannot_be_shown_is_said(place: Path, tmp_path: Path) -> None:
    for wanted, says in (
        (("inspect", place, "--run", "secnd"), "Did you mean 'second'?"),
        (("inspect", place, "--run", "first", "--json"), "--json shows all of a store"),
        (("inspect", place, "--scope", "other", "--picture", "a.png"), "no run of scope 'other'"),
        (("runs", "--scope", "net"), "--scope chooses from a store"),
        (("runs", "sqlite:///" + str(tmp_path / "none.db")), "there is no file"),
    ):
        done = CliRunner().invoke(app, [str(word) for word in wanted])
        assert done.exit_code != 0
        assert says in str(done.exception) + done.output
