"""Bad input: one clear line, the right exit code, and nothing lost or left behind."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.contracts.config import Config
from esper.stores.sqlite import SqliteStore


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESPER_DEBUG", raising=False)


def esper(*arguments: str, code: int) -> Result:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


def refused(*arguments: str, code: int = 2) -> str:
    """The one line that it says."""
    done = esper(*arguments, code=code)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("esper: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("leter",),
            "unknown task 'leter'; known: letter, digits, mnist1d, mnist5k, resmlp, resnet, kjv, "
            "transfer, transfer_far. Did you mean 'letter'",
        ),
        (("digits", "--strategy", "thomson"), "Did you mean 'thompson'?"),
        (("digits", "--epochs", "0"), "epochs is 0; it must be at least 1"),
        (("digits", "--seed", "-1"), "seed is -1; it must be >= 0"),
        (("digits", "--seed", str(10**30)), "it must be >= 0 and < 4294967296"),
        (("digits", "--budget", "-5"), "budget is -5 parameters; it must be >= 0"),
        (("digits", "--config", "no.yaml"), "no.yaml: there is no such file"),
        (("digits", "--store", "history.db"), "did you mean 'sqlite:///history.db'?"),
        (("digits", "--store", "sqlit:///x.db"), "Did you mean 'sqlite'?"),
        (("digits", "--store", "memory:"), "forgets everything when the command ends"),
        ((), "name a task, as in: esper train letter"),
        (("--resume", "letter-s0"), "in runs/: unknown run 'letter-s0'; known: none"),
    ],
)
def test_train_refuses_and_leaves_nothing(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("train", *arguments)
    assert list(Path().iterdir()) == []


def test_an_unknown_key_of_the_settings_is_named() -> None:
    Path("x.yaml").write_text("growth: {bugdet: 3}\n", encoding="utf-8")
    assert "Did you mean 'budget'?" in refused("train", "digits", "--config", "x.yaml")
    assert not Path("runs").exists()


def test_a_strategy_beside_an_ab_test_is_refused() -> None:
    arms = "{now: {strategy: ucb}, new: {strategy: auto}}"
    Path("x.yaml").write_text(f"ab_test: {{salt: first, arms: {arms}}}\n", encoding="utf-8")
    line = refused("train", "digits", "--config", "x.yaml", "--strategy", "exp3")
    assert "strategy 'exp3' would have no say: the arms of ab_test 'first' decide" in line
    assert not Path("runs").exists()


def test_a_bad_option_is_shown_with_the_usage() -> None:
    done = esper("train", "digits", "--epochs", "many", code=2)
    assert "Usage: " in done.stderr
    assert "--epochs" in done.stderr


def test_an_unknown_command_suggests_the_nearest() -> None:
    assert "train" in esper("trian", code=2).stderr


def test_inspect_refuses_what_is_not_there() -> None:
    assert "unknown run 'x'" in refused("inspect", "x")
    assert "choose from a store; leave them out for a run" in refused(
        "inspect", "x", "--scope", "digits"
    )


def test_a_file_in_the_place_of_the_runs() -> None:
    Path("runs").write_text("mine", encoding="utf-8")
    assert "runs" in refused("train", "digits", code=1)
    assert Path("runs").read_text(encoding="utf-8") == "mine"


def test_debug_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["--debug", "inspect", "x"])
    assert isinstance(done.exception, ValueError)
    monkeypatch.setenv("ESPER_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["inspect", "x"]).exception, ValueError)


# --- stores that cannot serve ---------------------------------------------------------------------


def store_refused(path: Path) -> str:
    line = refused("train", "digits", "--epochs", "1", "--store", f"sqlite:///{path}", code=1)
    assert str(path) in line
    assert not Path("runs").exists()
    return line


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(b"hello")
    assert "is not an SQLite file" in store_refused(path)
    assert path.read_bytes() == b"hello"


def test_a_store_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 7")
    assert "schema version 7, newer" in store_refused(path)


def test_a_locked_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.db"
    SqliteStore(path).close()
    patience = SqliteStore.__init__.__kwdefaults__
    assert patience is not None
    monkeypatch.setitem(patience, "busy_timeout_s", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "stayed locked by another process" in store_refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_read_only_store(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    SqliteStore(path).close()
    path.chmod(0o444)
    assert "cannot be written" in store_refused(path)


def test_a_store_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "its folder cannot be made" in store_refused(tmp_path / "file" / "history.db")


def test_help_tells_the_true_default() -> None:
    default = Config().seed_selection.strategy
    text = " ".join(esper("train", "--help", code=0).stdout.split())
    assert f"Strategy that chooses the seeds; see: esper strategies. [default: {default}]" in text
