"""The examples run as they stand, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []  # nothing is left behind
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[1])


@pytest.mark.slow
def test_plain_loop(tmp_path: Path) -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8").splitlines()) < 60
    text = printed("plain_loop.py", tmp_path)
    assert text.count("held-out loss ") > 24
    assert "kept: worth +" in text
    without = number(r"test loss: ([\d.]+) without growth", text)
    grown = number(r"without growth, ([\d.]+) with it", text)
    assert grown < without
    assert number(r"gain: ([\d.]+)", text) == pytest.approx(without - grown, abs=2e-4)
    assert number(r"parameters: 460 (\d+)", text) > 460


@pytest.mark.slow
def test_frozen_host(tmp_path: Path) -> None:
    text = printed("frozen_host.py", tmp_path)
    before = number(r"trained and frozen: test loss ([\d.]+)", text)
    assert number(r"grown: test loss ([\d.]+)", text) < 0.9 * before
    assert 0 < number(r", (\d+) parameters added", text) <= 800
    assert "the host is what it was, bit for bit" in text
    assert "saved and loaded: outputs are equal" in text
