"""The examples run as they stand, and print what they promise."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert list(tmp_path.iterdir()) == []  # nothing is left behind
        return capsys.readouterr().out

    return run


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[1])


@pytest.mark.trains
def test_plain_loop(printed: Callable[[str], str]) -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8").splitlines()) < 60
    text = printed("plain_loop.py")
    assert text.count("held-out loss ") > 24
    assert "kept: worth +" in text
    without = number(r"test loss: ([\d.]+) without growth", text)
    grown = number(r"without growth, ([\d.]+) with it", text)
    assert grown < without
    assert number(r"gain: ([\d.]+)", text) == pytest.approx(without - grown, abs=2e-4)
    assert number(r"parameters: 460 (\d+)", text) > 460


def test_frozen_host(printed: Callable[[str], str]) -> None:
    text = printed("frozen_host.py")
    before = number(r"trained and frozen: test loss ([\d.]+)", text)
    assert number(r"grown: test loss ([\d.]+)", text) < 0.9 * before
    assert 0 < number(r", (\d+) parameters added", text) <= 800
    assert "the host is what it was, bit for bit" in text
    assert "saved and loaded: outputs are equal" in text
