"""Looks of the commands: letters that a terminal has, commands that can be pasted, plain words."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from esper.cli import session, signs
from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from esper.pictures import effect_report
from esper.stores.files import write_whole
from tests.unit.cli.test_bad_input import esper


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_state_has_a_sign_of_its_own(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    found = {signs.seed_sign(state, "glu").plain.removesuffix(" glu") for state in SeedState}
    assert len(found) == len(SeedState)
    "".join(found).encode(encoding)
    signs.states_legend().plain.encode(encoding)


def test_commands_can_be_pasted() -> None:
    assert session._where(Path("a b")) == " --runs 'a b'"


def test_a_folder_of_runs_that_is_not_there() -> None:
    said = esper("runs", "--runs", "rusn", code=1).stderr
    assert "there is no folder rusn; give the one that holds the runs" in said
    assert "No runs in runs/ yet" in esper("runs", code=0).stdout


def test_a_report_is_called_one() -> None:
    with pytest.raises(ConfigError, match="there is no folder nope for the report"):
        effect_report.check(Path("nope/x.html"))


def test_a_full_disk_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(Path("picture.png"), b"x")
    assert caught.value.filename == "picture.png"
    assert list(Path().iterdir()) == []
