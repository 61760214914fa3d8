"""``esper replay`` on real runs and on a store, and as text."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.stores import open_store
from esper.strategies import STRATEGIES
from tests.unit.studies.simulated import GAINS, record


def esper(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "ESPER_DEBUG": None})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('replay') / 'history.db'}"
    exploring = STRATEGIES.create("epsilon_greedy", epsilon=0.6, decay_rate=1.0)
    with open_store(url) as opened:
        record(exploring, choices=400, store=opened)
    return url


def test_a_person_reads_what_would_have_been_earned(store: str) -> None:
    text = esper("replay", "--store", store, "--strategy", "fixed", "--set", "seed_idx=2").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("Replay of fixed\n400 decisions of epsilon_greedy, 400 outcomes\n")
    for name in ("logged", "importance-weighted", "self-normalised", "doubly robust"):
        assert f"\n{name} " in text
    assert "fixed would have earned more than what was logged." in text
    assert "Intervals are normal." in text


def test_json_has_the_estimates_and_their_intervals(store: str) -> None:
    asked = ("replay", "--store", store, "--scope", "sim", "--strategy", "fixed", "--json")
    document = json.loads(esper(*asked, "--set", "seed_idx=2").stdout)
    estimates = {one["name"]: one for one in document["estimates"]}
    assert set(estimates) == {"logged", "ips", "snips", "dr"}
    for name in ("ips", "snips", "dr"):
        low, high = estimates[name]["interval"]
        assert low < GAINS[2] < high
        assert estimates[name]["gain"] > 0
    assert document["refusal"] == ""
    assert 30 < document["sample"] < 400


def test_a_refusal_is_told_and_exits_with_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    with open_store(url) as opened:
        record(STRATEGIES.create("ucb"), choices=60, store=opened)
    done = esper("replay", "--store", url, "--strategy", "random", code=1)
    assert "no estimate: " in done.stdout
    assert "deterministic" in done.stdout
    assert "seed_selection.strategy: epsilon_greedy" in done.stdout.replace("\n", " ")
    asked = ("replay", "--store", url, "--strategy", "random", "--json")
    document = json.loads(esper(*asked, code=1).stdout)
    assert document["estimates"] == []
    assert "deterministic" in document["refusal"]


def test_a_picture_is_drawn(store: str, tmp_path: Path) -> None:
    path = tmp_path / "replay.svg"
    esper("replay", "--store", store, "--strategy", "random", "--picture", str(path))
    assert path.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "ucbb", "--store", "STORE"), "Did you mean 'ucb'?"),
        (("--strategy", "ucb"), "give the names of runs or a --store"),
        (("--strategy", "ucb", "--store", "STORE", "letter-s0"), "one of the two"),
        (("--strategy", "ucb", "letter-s0", "--scope", "x"), "--scope chooses from a --store"),
        (("--strategy", "ucb", "letter-s0", "--runs", "none"), "unknown run 'letter-s0'"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "c=1"), "strategy 'ucb': 'c'"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "epsilon"), "is not key=value"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "=2"), "is not key=value"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "exploration_constant=x"),
         "exploration_constant is 'x'"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "exploration_constant=-1"),
         "exploration_constant is -1"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "a=[", ), "cannot be read"),
        (("--strategy", "ucb", "--store", "STORE", "--set", "a=1", "--set", "a=2"), "given twice"),
        (("--strategy", "ucb", "--store", "STORE", "--scope", "x"), "nothing of scope 'x'"),
    ],
)  # fmt: skip
def test_bad_input_says_what_would_be_right(
    store: str, arguments: tuple[str, ...], message: str
) -> None:
    given = [store if word == "STORE" else word for word in arguments]
    done = CliRunner().invoke(app, ["replay", *given], env={"COLUMNS": "80"})
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_picture_that_cannot_be_is_told_before_anything_is_shown(store: str) -> None:
    arguments = ("--strategy", "ucb", "--store", store, "--picture", "x.txt")
    done = CliRunner().invoke(app, ["replay", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "a picture is .png, .svg or .pdf" in done.stderr


def test_runs_are_replayed_from_their_folders_and_from_a_store_they_share(tmp_path: Path) -> None:
    runs, url = str(tmp_path / "runs"), f"sqlite:///{tmp_path / 'shared.db'}"
    often = tmp_path / "often.yaml"  # a choice every other epoch
    often.write_text("growth: {kernel_share: 0.1, train_epochs: 1, plateau_threshold: 10.0}\n")
    asked = ("train", "digits", "--epochs", "7", "--strategy", "random", "--config", str(often))
    train = (*asked, "--no-static", "--runs", runs, "--json")
    for seed, where in (("0", ()), ("1", ("--store", url)), ("2", ("--store", url))):
        esper(*train, "--seed", seed, *where)

    def decisions(*names: str) -> int:
        asked = ("replay", *names, "--strategy", "round_robin", "--runs", runs, "--json")
        done = CliRunner().invoke(app, asked, env={"COLUMNS": "80"})
        assert done.exit_code in {0, 1}, done.output  # so short a run may be refused
        document = json.loads(done.stdout)
        assert document["choosers"] == ["random"]
        return int(document["decisions"])

    each = [decisions(name) for name in ("digits-s0", "digits-s1", "digits-s2")]
    assert min(each) >= 2
    assert decisions("digits-s0", "digits-s1", "digits-s2", "digits-s0") == sum(each)
