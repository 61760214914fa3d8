"""The same run gives the same log: today, in another process, and after a change of the code."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.letter_run import LOG, lines

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?")


def agrees(found: Any, wanted: Any) -> bool:
    """Equal, floats but for rounding and those inside sentences up to their last digit."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(agrees(found[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(agrees, found, wanted))
    if isinstance(wanted, float):
        return isinstance(found, float) and found == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    if isinstance(wanted, str):
        numbers = [float(number) for number in NUMBER.findall(wanted)]
        theirs = [float(number) for number in NUMBER.findall(found)]
        close = theirs == pytest.approx(numbers, rel=2e-2, abs=2e-3)
        return NUMBER.sub("#", found) == NUMBER.sub("#", wanted) and close
    return bool(found == wanted)


@pytest.fixture(scope="module")
def log() -> list[str]:
    return list(lines())


@pytest.mark.trains
def test_the_log_is_the_one_that_was_kept(log: list[str]) -> None:
    found = [json.loads(line) for line in log]
    wanted = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
    for ours, theirs in zip(found, wanted, strict=False):
        if theirs["kind"] == "run":  # of this installation
            for event in (ours, theirs):
                del event["data"]["versions"], event["data"]["settings"]
        assert agrees(ours, theirs), f"{ours}\nis not what was kept:\n{theirs}"
    assert len(found) == len(wanted)


def test_two_processes_write_the_same_bytes(log: list[str]) -> None:
    command = [sys.executable, "-m", "tests.golden.letter_run"]
    other = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert other.stdout == "".join(f"{line}\n" for line in log)


def test_the_kept_log_has_something_of_everything() -> None:
    events = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
    kinds = {event["kind"] for event in events}
    assert kinds == {
        "run", "health", "request", "decision", "lifecycle", "outcome", "graft", "epoch",
    }  # fmt: skip
    assert {event["data"]["kept"] for event in events if event["kind"] == "graft"} == {True, False}
    decisions = [event["data"] for event in events if event["kind"] == "decision"]
    assert any(decision["score"] is None for decision in decisions)  # a first try
    assert any(decision["score"] is not None for decision in decisions)
    assert len({decision["layer"] for decision in decisions}) > 1


@pytest.mark.parametrize(
    ("found", "wanted", "answer"),
    [
        ({"a": 1.0000000001}, {"a": 1.0}, True),
        ({"a": 1.00001}, {"a": 1.0}, False),
        ({"a": 2}, {"a": 1}, False),
        ({"seed": 1}, {"seeds": 1}, False),
        ("worth +0.0512 ± 0.0100", "worth +0.0511 ± 0.0100", True),
        ("worth +0.0512", "worth +0.1511", False),
        ("fc1 promises most", "fc2 promises most", False),
        ([1], [1, 2], False),
        ({"score": None}, {"score": 0.5}, False),
    ],
)
def test_what_counts_as_agreeing(found: Any, wanted: Any, answer: bool) -> None:
    assert agrees(found, wanted) is answer
