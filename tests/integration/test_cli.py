"""The command line as it is used: real processes, real signals, real files.

What needs no process of its own runs in this one, where torch is imported already.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app

EPOCHS = 8
ESPER = (sys.executable, "-m", "esper")
TRAIN = ("train", "digits", "--epochs", str(EPOCHS))


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ESPER_", "FORCE_", "TTY_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def esper(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*ESPER, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def inside(*arguments: str, cwd: Path, code: int = 0) -> Result:
    here = Path.cwd()
    os.chdir(cwd)
    try:
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "ESPER_DEBUG": None})
    finally:
        os.chdir(here)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of the same seed: the first told as JSON, the second as tables."""
    folder = tmp_path_factory.mktemp("place")
    first = esper(*TRAIN, "--json", cwd=folder)
    (folder / "first.out").write_text(first.stdout, encoding="utf-8")
    (folder / "first.err").write_text(first.stderr, encoding="utf-8")
    second = inside(*TRAIN, cwd=folder)
    (folder / "second.out").write_text(second.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def log(place: Path) -> str:
    """The event log of a run that nothing stopped."""
    return inside("inspect", "digits-s0", "--events", cwd=place).stdout


def inspected(place: Path, run: str = "digits-s0") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(inside("inspect", run, "--json", cwd=place).stdout)
    return document


def test_json_is_one_document_and_says_where_everything_is(place: Path) -> None:
    document = json.loads((place / "first.out").read_text(encoding="utf-8"))
    assert document["run"] == "digits-s0"
    assert (place / document["folder"] / "run.json").is_file()
    assert (place / document["picture"]).read_bytes().startswith(b"\x89PNG")
    result = document["result"]
    assert result["grafts"]
    assert result["grown"]["parameters"] == result["control"]["parameters"] + result["used"]
    assert result["used"] <= result["budget"] == 2000
    nearest = result["static"]["parameters"] - result["grown"]["parameters"]
    assert abs(nearest) <= 100  # a unit more costs up to so many
    assert result["scored_epochs"] == 3


def test_tables_tell_what_json_tells(place: Path) -> None:
    text = (place / "second.out").read_text(encoding="utf-8")
    result = inspected(place)["result"]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for graft in result["grafts"]:
        (line,) = [
            line
            for line in text.splitlines()
            if line.split()[:3]
            == [str(graft["epoch"]), graft["layer_name"], str(graft["seed_idx"])]
        ]
        assert f" {graft['blueprint']} " in line
        assert f"{graft['reward']:+.4f} ± {graft['stderr']:.4f}" in line
        assert ("kept: >" if graft["kept"] else "culled: ≤") in line
    assert f"{result['grown']['test_accuracy'] * 100:.1f} %" in text
    assert "esper inspect digits-s0-2" in text


def test_progress_in_a_log_is_a_line_for_epochs_in_which_something_happened(place: Path) -> None:
    lines = (place / "first.err").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"digits-s0 control: {EPOCHS} epochs, held-out loss ")
    assert lines[-1].startswith(f"digits-s0 static: {EPOCHS} epochs, held-out loss ")
    assert all(line.startswith("digits-s0 epoch ") for line in lines[1:-1])
    assert 3 < len(lines) <= EPOCHS
    assert any("chose layer " in line for line in lines)
    assert any(" kept (+" in line for line in lines)


def test_the_same_seed_writes_the_same_log_to_the_byte(place: Path, log: str) -> None:
    assert inside("inspect", "digits-s0-2", "--events", cwd=place).stdout == log
    kinds = {json.loads(line)["kind"] for line in log.splitlines()}
    assert {"request", "decision", "lifecycle", "outcome", "graft", "epoch"} <= kinds
    assert "timing" not in kinds
    assert "digits-s0" not in log


def test_inspect_json_has_everything(place: Path, log: str) -> None:
    document = inspected(place)
    assert document["spec"]["epochs"] == EPOCHS
    assert [json.dumps(event) for event in document["events"]] == log.splitlines()
    chosen = sum(event["kind"] == "decision" for event in document["events"])
    assert len(document["seeds"]) == 4
    assert sum(seed["chosen"] for seed in document["seeds"]) == chosen


def test_inspect_tells_a_person(place: Path) -> None:
    text = inside("inspect", "digits-s0", cwd=place).stdout
    assert max(map(len, text.splitlines())) <= 80
    for seed in inspected(place)["seeds"]:
        assert [line for line in text.splitlines() if line.split()[:2] == _name(seed)]
    assert "2,000 parameters" in text
    assert "No graft was refused." in text


def test_inspect_says_how_each_seed_stands(place: Path) -> None:
    document = inspected(place)
    text = inside("inspect", "digits-s0", cwd=place).stdout
    for layer in {seed["layer"] for seed in document["seeds"]}:
        seeds = [seed["now"] for seed in document["seeds"] if seed["layer"] == layer]
        assert sum(now["propensity"] for now in seeds) == pytest.approx(1)
    for seed in document["seeds"]:
        now = seed["now"]
        assert now["outcomes"] == seed["outcomes"] + seed["failures"]
        if seed["outcomes"] and not seed["failures"]:
            assert now["mean"] == pytest.approx(seed["mean_reward"])
        (line,) = [each for each in text.splitlines() if each.split()[:2] == _name(seed)]
        assert line.split()[-1] == str(now["pending"])
        assert line.split()[-2] == str(now["choices"])
        assert line.split()[-3] == f"{now['propensity']:.2f}"
        kept = [f"+{seed['kept']}"] if seed["kept"] else []
        assert line.split()[4 : 5 + len(kept)] == [*kept, str(now["count"])]
    latest = [event["data"] for event in document["events"] if event["kind"] == "decision"][-1]
    assert document["latest_decision"]["reason"] == latest["reason"]
    assert latest["reason"] in text


def test_a_store_is_inspected_by_its_address(place: Path) -> None:
    url = f"sqlite:///{place.resolve()}/runs/digits-s0/history.db"
    (document,) = json.loads(inside("inspect", url, "--json", cwd=place).stdout)
    of_run = inspected(place)
    assert document["scope"] == "digits"
    assert document["latest_decision"] == of_run["latest_decision"]
    known = {_key(seed): seed["now"] for seed in of_run["seeds"] if seed["chosen"]}
    assert {_key(seed): seed["now"]["mean"] for seed in document["seeds"]} == {
        key: now["mean"] for key, now in known.items()
    }
    file = "runs/digits-s0/history.db"
    assert (
        inside("inspect", file, "--json", cwd=place).stdout
        == json.dumps([document], indent=2) + "\n"
    )
    text = inside("inspect", url, "--scope", "digits", cwd=place).stdout
    assert "as auto (default settings) sees them now" in text
    rows = inside("inspect", url, "--events", cwd=place).stdout.splitlines()
    assert json.loads(rows[0])["kind"] == "run"


def test_a_run_on_a_shared_store_stands_as_it_stood_at_its_end(tmp_path: Path) -> None:
    train = ("train", "digits", "--epochs", "5", "--store", "sqlite:///h.db", "--seed")
    inside(*train, "0", cwd=tmp_path)
    before = inspected(tmp_path)["seeds"]
    inside(*train, "1", cwd=tmp_path)
    assert inspected(tmp_path)["seeds"] == before
    later = {_key(seed): seed for seed in inspected(tmp_path, "digits-s1")["seeds"]}
    assert any(seed["now"]["outcomes"] for seed in before)
    for seed in before:
        own = later[_key(seed)]["outcomes"] + later[_key(seed)]["failures"]
        assert later[_key(seed)]["now"]["outcomes"] == seed["now"]["outcomes"] + own


def _name(seed: dict[str, Any]) -> list[str]:
    return [seed["layer"], str(seed["seed"])]


def _key(seed: dict[str, Any]) -> tuple[str, int]:
    return seed["layer"], seed["seed"]


def test_runs_lists_what_is_there(place: Path) -> None:
    document = json.loads(inside("runs", "--json", cwd=place).stdout)
    assert [run["run"] for run in document] == ["digits-s0", "digits-s0-2"]
    assert all(run["state"] == "finished" for run in document)
    assert all(run["epochs_done"] == EPOCHS for run in document)
    text = inside("runs", cwd=place).stdout
    assert f"{EPOCHS}/{EPOCHS}" in text
    assert "finished" in text


def test_a_finished_run_is_not_resumed_but_shown(place: Path) -> None:
    before = (place / "runs/digits-s0/report.json").read_bytes()
    done = inside("train", "--resume", "digits-s0", "--json", cwd=place)
    assert "run digits-s0 has ended" in done.stderr
    assert json.loads(done.stdout)["result"] == inspected(place)["result"]
    assert (place / "runs/digits-s0/report.json").read_bytes() == before


def stop(begin: tuple[str, ...], at: str, blow: signal.Signals, cwd: Path) -> tuple[int, str]:
    """Begin, strike once a line that starts with ``at`` is told; exit code, and what was told."""
    # A shell ignores SIGINT in what it runs in the background, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [*ESPER, *begin], cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    with process.stderr as told:
        for line in told:
            if line.startswith(at):
                process.send_signal(blow)
                break
        rest = told.read()
    return process.wait(timeout=60), rest


def test_a_run_stopped_twice_resumes_and_its_log_is_that_of_one_never_stopped(
    tmp_path: Path, place: Path, log: str
) -> None:
    resume = ("train", "--resume", "digits-s0")
    code, told = stop(TRAIN, "digits-s0 epoch 1:", signal.SIGINT, tmp_path)
    assert code == 130, told
    assert "interrupted after " in told
    assert "go on with: esper train --resume digits-s0" in told
    assert "Traceback" not in told
    (unfinished,) = json.loads(inside("runs", "--json", cwd=tmp_path).stdout)
    assert unfinished["state"] == "interrupted"
    assert 2 <= unfinished["epochs_done"] < EPOCHS
    assert (
        f"interrupted after {unfinished['epochs_done']}"
        in inside("inspect", "digits-s0", "--picture", "sofar.svg", cwd=tmp_path).stdout
    )
    assert (tmp_path / "sofar.svg").read_text(encoding="utf-8").startswith("<?xml")

    code, told = stop(resume, "digits-s0 epoch ", signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL, told
    inside(*resume, cwd=tmp_path)
    assert inside("inspect", "digits-s0", "--events", cwd=tmp_path).stdout == log
    assert inspected(tmp_path)["result"] == inspected(place)["result"]


def test_a_disk_that_takes_nothing_leaves_nothing(tmp_path: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100))
    done = subprocess.run(
        [*ESPER, *TRAIN],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "esper: runs/digits-s0/run.json: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_is_quick_because_it_imports_little() -> None:
    heavy = "{'torch', 'numpy', 'matplotlib', 'pydantic', 'rich', 'redis', 'yaml'}"
    code = f"import esper.cli.main, sys; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


@pytest.mark.parametrize("command", ["train", "runs", "inspect", "strategies", "blueprints"])
def test_help_imports_little_too(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "esper", command, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Usage: ")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "matplotlib", "pydantic", "rich.console"} & imported


def test_a_closed_pipe_is_no_error(place: Path) -> None:
    piped = f"{sys.executable} -m esper inspect digits-s0 --events | head -n 1"
    done = subprocess.run(
        piped, shell=True, cwd=place, env=environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["epoch"] == 0
    assert done.stderr == ""
