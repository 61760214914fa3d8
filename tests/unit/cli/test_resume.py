"""Resuming: only as the run that it was, from wherever it is, or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.execution import checkpoint
from esper.runs import run_lock
from esper.runs.run_folder import RunFolder

CONFIG = "growth: {warmup_epochs: 1}\nseed_selection: {strategy: thompson}\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, its log in a store beside it."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "x.yaml").write_text(CONFIG, encoding="utf-8")
    asked = ("digits", "--epochs", "3", "--seed", "4", "--config", str(folder / "x.yaml"))
    store = ("--store", f"sqlite:///{folder}/history.db")
    done = esper("train", *asked, *store, "--runs", str(folder / "runs"))
    assert f"esper inspect digits-s4 --runs {folder / 'runs'}" in done.stdout.replace("\n", " ")
    return folder / "runs"


def esper(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


def resume(runs: Path, *options: str, code: int) -> str:
    return esper("train", *options, "--resume", "digits-s4", "--runs", str(runs), code=code).stderr


def test_contradictions_are_named_all_at_once(runs: Path) -> None:
    line = resume(
        runs, "letter", "--no-static", "--seed", "5", "--epochs", "9", "--strategy", "ucb", code=2
    )
    assert "run 'digits-s4' cannot be resumed as another run: task letter (it has digits)" in line
    assert "--strategy ucb (it has thompson), --seed 5 (it has 4), --epochs 9 (it has 3)" in line
    assert "--no-static (it has one)" in line


def test_another_store_or_budget_is_a_contradiction(runs: Path) -> None:
    line = resume(runs, "--store", "sqlite:///other.db", "--budget", "5", code=2)
    assert f"--budget 5 (it has 2000), --store sqlite:///{Path.cwd()}/other.db (it has " in line


def test_settings_are_compared_by_what_the_file_says(runs: Path, tmp_path: Path) -> None:
    same = runs.parent / "x.yaml"
    assert "has ended" in resume(runs, "--config", str(same), code=0)
    other = tmp_path / "y.yaml"
    other.write_text("growth: {warmup_epochs: 3}\n", encoding="utf-8")
    line = resume(runs, "--config", str(other), code=2)
    assert f"--config {other} (growth.warmup_epochs is 3, it has 1)" in line


def test_what_agrees_is_no_contradiction(runs: Path) -> None:
    asked = ("digits", "--seed", "4", "--epochs", "3", "--strategy", "thompson")
    assert "has ended; there is nothing to resume" in resume(runs, *asked, code=0)


def test_a_picture_that_was_not_drawn_any_more_is_drawn(runs: Path) -> None:
    picture = runs / "digits-s4" / "run.png"
    picture.unlink()
    resume(runs, code=0)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_found_by_its_path_too(runs: Path) -> None:
    done = esper("inspect", str(runs / "digits-s4"), "--json")
    assert json.loads(done.stdout)["spec"]["seed"] == 4


def test_a_lost_log_is_missed_not_made_anew(runs: Path) -> None:
    store, aside = runs.parent / "history.db", runs.parent / "aside.db"
    store.rename(aside)
    try:
        done = esper("inspect", "digits-s4", "--runs", str(runs), code=1)
        assert f"was in {store}, and there is no such file" in done.stderr
        assert not store.exists()
    finally:
        aside.rename(store)


@pytest.mark.parametrize("damage", ["not json", '{"schema": 1, "task": "digits"}'])
def test_a_damaged_run_is_named_and_hides_no_other(runs: Path, tmp_path: Path, damage: str) -> None:
    both = tmp_path / "runs"
    (both / "bad").mkdir(parents=True)
    (both / "bad" / "run.json").write_text(damage, encoding="utf-8")
    (both / "digits-s4").symlink_to(runs / "digits-s4")
    found: list[dict[str, Any]] = json.loads(esper("runs", "--json", "--runs", str(both)).stdout)
    problems = {run["run"]: run["problem"] for run in found}
    assert "run.json is damaged" in problems["bad"]
    assert problems["digits-s4"] == ""
    assert "run.json is damaged" in esper("inspect", "bad", "--runs", str(both), code=1).stderr


def test_a_run_under_way_is_not_resumed_twice(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "digits-s4")
    folder.path.mkdir(parents=True)
    asked = (runs / "digits-s4" / "run.json").read_text(encoding="utf-8")
    (folder.path / "run.json").write_text(asked, encoding="utf-8")
    for _ in range(2):  # another process at work, as far as the lock can tell
        with run_lock.held(folder):
            line = resume(folder.path.parent, code=2)
            assert "'digits-s4' is being trained by another process" in line
            assert state_of(folder.path.parent) == "running"
        assert state_of(folder.path.parent) == "interrupted"


def test_a_run_of_another_version_is_left_to_that_version(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "digits-s4")
    folder.path.mkdir(parents=True)
    asked = (runs / "digits-s4" / "run.json").read_text(encoding="utf-8")
    asked = json.dumps(json.loads(asked))  # as that version wrote it, not as this one would
    (folder.path / "run.json").write_text(asked, encoding="utf-8")
    checkpoint.save(folder.checkpoint, {"epoch": 0, "tamiyo": {"epoch": 0}})
    line = resume(folder.path.parent, code=2)
    assert "the state of a Tamiyo has no schema" in line
    assert (folder.path / "run.json").read_text(encoding="utf-8") == asked


def test_a_run_without_a_schedule_is_left_to_its_version(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "digits-s4")
    folder.path.mkdir(parents=True)
    asked = (runs / "digits-s4" / "run.json").read_text(encoding="utf-8")
    (folder.path / "run.json").write_text(asked, encoding="utf-8")
    saved = checkpoint.load(RunFolder(runs / "digits-s4").checkpoint)
    del saved["scheduler"]
    checkpoint.save(folder.checkpoint, saved)
    assert "whose learning rates had no schedule" in resume(folder.path.parent, code=2)


def test_only_the_static_network_is_trained_again_if_it_was_stopped(
    runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "digits-s4"
    shutil.copytree(runs / "digits-s4", folder)
    before = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    curves = [json.loads((folder / f"{part}.json").read_text()) for part in ("control", "grown")]
    assert [len(curve["losses"]) for curve in curves] == [3, 3]
    assert all(isinstance(loss, float) for curve in curves for loss in curve["losses"])
    for name in ("report.json", "static.json"):
        (folder / name).unlink()
    told = resume(folder.parent, code=0).splitlines()
    assert len([line for line in told if " static: 3 epochs" in line]) == 1
    assert not [line for line in told if " control: " in line or " epoch " in line]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == before


def state_of(runs: Path) -> str:
    (run,) = json.loads(esper("runs", "--json", "--runs", str(runs)).stdout)
    return str(run["state"])


def test_no_runs_yet(tmp_path: Path) -> None:
    text = esper("runs", "--runs", str(tmp_path)).stdout
    assert "start one with: esper train letter" in text
    assert json.loads(esper("runs", "--json", "--runs", str(tmp_path)).stdout) == []
