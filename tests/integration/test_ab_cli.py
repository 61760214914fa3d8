"""``esper ab`` on the store of real runs, and as text."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.services.tamiyo.assignment import Assignment
from esper.stores import open_store
from esper.strategies import STRATEGIES
from tests.unit.studies.simulated import record

SETTINGS = """\
ab_test:
  salt: digits-1
  unit: layer
  arms:
    now: {strategy: epsilon_greedy, settings: {epsilon: 0.5}}
    new: {strategy: random, weight: 2.0}
  guardrails: {failure_rate: 0.1}
growth: {train_epochs: 1, warmup_epochs: 1, plateau_threshold: 1.0}
"""


def esper(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "ESPER_DEBUG": None})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('ab') / 'history.db'}"
    arms = {name: STRATEGIES.create(name) for name in ("random", "ucb")}
    with open_store(url) as opened:
        for run in range(3):
            record(Assignment("ucb-1", arms), choices=200, seed=run, store=opened)
    return url


def test_a_person_reads_a_verdict(store: str) -> None:
    text = esper("ab", store).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("A/B test 'ucb-1', by graft\nucb earns ")
    assert "decided after" in text
    assert "fits the weights 1:1" in text
    for name in ("failure rate", "culled share", "latency"):
        assert f"\n{name} " in text


def test_json_has_the_same_and_the_sequence(store: str) -> None:
    document = json.loads(esper("ab", store, "--json").stdout)
    (one,) = document["comparisons"]
    assert one["state"] == "decided"
    assert one["low"] > 0
    assert document["verdicts"] == [one["verdict"]]
    assert len(one["path"]) == sum(arm["outcomes"] for arm in document["arms"]) == 600
    count, difference, low, high = one["path"][-1]
    assert count == 600
    assert low < difference < high
    assert one["path"][0][2] is None
    assert {rail["name"]: rail["state"] for rail in one["guardrails"]}["failure_rate"] == "kept"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_and_the_same_each_time(store: str, suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        done = esper("ab", store, "--picture", str(path))
        assert f"picture: {path}" in done.stderr.replace("\n", "")
    one, two = (path.read_bytes() for path in paths)
    assert one[:5] in {b"\x89PNG\r", b"<?xml"}
    assert suffix == "svg" or one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.db",), "'nowhere.db' is not a store URL"),
        (("sqlite:///nowhere.db",), "there is no file nowhere.db"),
        (("STORE", "--scope", "other"), "nothing of scope 'other'; it has 'sim'"),
        (("STORE", "--test", "ucb-2"), "Did you mean 'ucb-1'?"),
        (("STORE", "--picture", "x.txt"), "a picture is .png, .svg or .pdf"),
    ],
)
def test_bad_input_says_what_would_be_right(
    store: str, arguments: tuple[str, ...], message: str
) -> None:
    given = [store if word == "STORE" else word for word in arguments]
    done = CliRunner().invoke(app, ["ab", *given], env={"COLUMNS": "80"})
    assert done.exit_code in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_an_empty_store_is_said_to_be_empty(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    with open_store(url):
        pass
    assert "is empty" in esper("ab", url, code=2).stderr


def test_training_runs_take_part_as_the_settings_say(tmp_path: Path) -> None:
    """Two real runs on one store: layers are assigned, and what is logged can be analysed."""
    (tmp_path / "ab.yaml").write_text(SETTINGS, encoding="utf-8")
    url = f"sqlite:///{tmp_path / 'history.db'}"
    for seed in ("0", "1"):
        esper(
            "train", "digits", "--epochs", "6", "--config", str(tmp_path / "ab.yaml"),
            "--store", url, "--runs", str(tmp_path / "runs"), "--seed", seed, "--json",
        )  # fmt: skip
    document: dict[str, Any] = json.loads(esper("ab", url, "--json").stdout)
    assert document["test"] == "digits-1"
    assert document["unit"] == "layer"
    assert [arm["arm"] for arm in document["arms"]] == ["now", "new"]
    assert [arm["weight"] for arm in document["arms"]] == [1.0, 2.0]
    assert document["balance"]["moved"] == 0
    made = sum(arm["decisions"] for arm in document["arms"])
    assert made >= 4
    with open_store(url) as opened:
        events = [event for _, event in opened.read(kinds=["decision"])]
    decisions, made_by = [event.data for event in events], {event.run for event in events}
    assert len(decisions) == made
    by_unit: dict[str, set[str]] = {}
    for data in decisions:
        by_unit.setdefault(data["ab"]["unit"], set()).add(data["ab"]["arm"])
        assert sum(data["propensities"].values()) == pytest.approx(1, abs=1e-3)
    assert all(len(arms) == 1 for arms in by_unit.values())
    rails = {r["name"]: r["limit"] for r in document["comparisons"][0]["guardrails"]}
    assert rails == {"failure_rate": 0.1, "culled_share": 0.1, "latency": 0.2}
    runs = ("--runs", str(tmp_path / "runs"))
    assert {run["strategy"] for run in json.loads(esper("runs", "--json", *runs).stdout)} == {
        "A/B test 'digits-1'"
    }
    shown = " ".join(esper("inspect", "digits-s1", *runs).stdout.split())
    assert "Seeds, as the arm of A/B test 'digits-1' whose turn is next sees them now" in shown
    (run,) = {run for run in made_by if run.startswith("digits-s1-")}
    assert f"as {run}" in shown  # by which it is known in the store
    (stands,) = json.loads(esper("inspect", url, "--json").stdout)
    # Nothing begins that the end of its run would cut short, and no later run waits for it.
    assert sum(seed["now"]["outcomes"] for seed in stands["seeds"]) == made
    assert [seed["now"]["pending"] for seed in stands["seeds"]] == [0] * len(stands["seeds"])
    assert "\nrun " in esper("inspect", url).stdout  # who chose, since it was not one run
