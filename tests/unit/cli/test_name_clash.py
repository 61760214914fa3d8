from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper import __version__
from esper.cli.main import app


def _install(folder: Path, name: str, version: str) -> None:
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_version_is_silent_when_nothing_clashes() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, f"esper {__version__}\n", "")


def test_version_names_the_package_that_overwrites_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "esper", "3.9")
    _install(tmp_path, "esper_morph", "7.8.9")
    monkeypatch.syspath_prepend(tmp_path)
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, "esper 7.8.9\n")
    (warning,) = shown.stderr.splitlines()
    assert "esper 3.9 from PyPI" in warning
    assert "pip uninstall esper" in warning
