"""The study of regret: problems that mean what they say, honest sums, the same figures again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from esper.cli.main import app
from esper.contracts.errors import ConfigError
from esper.strategies import STRATEGIES
from esper.studies.simulated.environments import ENVIRONMENTS, OneLayer, SharedKinds, environments
from esper.studies.simulated.regret import Contestant, StudySpec, Trial, play, study

# The regret of choosing evenly, as the goals were set beside it; over the whole horizon.
EVEN = {"A": 2229, "B": 75, "C": 75, "D": 2251, "E": 5.6}


def _contestants(*names: str) -> tuple[Contestant, ...]:
    return tuple([Contestant(name, STRATEGIES.create(name)) for name in names])


def _trials(names: list[str], where: list[str], runs: int = 3, steps: int = 60) -> list[Trial]:
    found = tuple(environments(where))
    return study(
        StudySpec(contestants=_contestants(*names), environments=found, runs=runs, steps=steps)
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_problem_is_a_function_of_seed_and_run(name: str) -> None:
    environment = ENVIRONMENTS[name]
    one, again = environment.problem(1, 2, 50), environment.problem(1, 2, 50)
    other = environment.problem(1, 3, 50)
    assert np.array_equal(one.rewards, again.rewards)
    assert not np.array_equal(one.rewards, other.rewards)
    assert one.means.shape == one.rewards.shape == (50, one.means.shape[1])
    assert one.delays.shape == (50,)


@pytest.mark.parametrize("name", EVEN)
def test_choosing_evenly_costs_what_was_measured_before(name: str) -> None:
    environment = ENVIRONMENTS[name]
    means = environment.problem(0, 0, environment.horizon).means
    regret = (means.max(axis=1, keepdims=True) - means).mean(axis=1).sum()
    assert regret == pytest.approx(EVEN[name], rel=0.01)


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name not in {"H7", "H8"}])
def test_noise_leaves_the_means_alone(name: str) -> None:
    environment = ENVIRONMENTS[name]
    problem = environment.problem(0, 0, 20_000)
    off = (problem.rewards - problem.means).mean(axis=0)
    sd = (problem.rewards - problem.means).std(axis=0)
    assert (np.abs(off) < 5 * sd / np.sqrt(20_000)).all()


def test_the_best_arm_moves_at_every_change() -> None:
    for name, every in (("C", 500), ("D", 500)):
        best = ENVIRONMENTS[name].problem(0, 0, 5000).means.argmax(axis=1)
        assert (np.flatnonzero(np.diff(best)) + 1).tolist() == list(range(every, 5000, every))


def test_the_best_arm_of_e_is_at_every_place_in_turn() -> None:
    best = [int(ENVIRONMENTS["E"].problem(0, run, 1).means.argmax()) for run in range(8)]
    assert best == [0, 1, 2, 3, 0, 1, 2, 3]


def test_arms_of_one_kind_are_worth_about_the_same() -> None:
    environment = ENVIRONMENTS["F"]
    assert isinstance(environment, SharedKinds)
    problem = replace(environment, scatter=0.0).problem(0, 0, 6)
    worths: dict[str, set[float]] = {}
    for layer, kinds in enumerate(problem.kinds):
        for arm, kind in enumerate(kinds):
            worths.setdefault(kind, set()).add(float(problem.means[layer, arm]))
    assert [len(found) for found in worths.values()] == [1] * 5
    assert len(set(problem.kinds)) > 1, "layers have their arms in different orders"


def test_regret_is_counted_in_means_not_in_luck() -> None:
    environment = ENVIRONMENTS["B"]
    problem = environment.problem(0, 0, 40)
    chosen = play(STRATEGIES.create("fixed", seed_idx=3), environment, problem, 0)
    assert set(chosen) == {3}
    chosen = play(STRATEGIES.create("ucb"), environment, problem, 0)
    assert sorted(chosen[:8]) == list(range(8)), "every arm once first"
    (trial,) = _trials(["round_robin"], ["B"], runs=1, steps=80)
    assert trial.mean == pytest.approx(80 * 0.015)
    assert trial.gain == pytest.approx(1.0)
    assert trial.stderr is None


def test_all_meet_the_same_problems_and_paths_only_rise() -> None:
    random, ucb = _trials(["random", "ucb"], ["A"], runs=12, steps=300)
    assert np.array_equal(random.even, ucb.even)
    assert ucb.mean < 0.5 * random.mean
    assert (np.diff(ucb.paths, axis=1) >= 0).all()
    assert ucb.paths.shape == (12, 100)
    assert ucb.worst == max(ucb.regrets)


def test_the_figures_do_not_depend_on_processes() -> None:
    asked = StudySpec(
        contestants=_contestants("thompson"),
        environments=tuple(environments(["B", "E"])),
        runs=12,
        steps=20,
    )
    for one, other in zip(study(asked), study(asked, jobs=2), strict=True):
        assert np.array_equal(one.paths, other.paths)


def test_bare_steps_and_the_selector_agree() -> None:
    """Nothing is blocked in E: through the selector or not, a strategy sees the same."""
    environment = ENVIRONMENTS["E"]
    assert isinstance(environment, OneLayer)
    for name in ("ucb", "round_robin"):
        problem = environment.problem(0, 0, 200)
        bare = replace(environment, name="E.0", epochs_apart=0)  # layers are named alike
        strategy = STRATEGIES.create(name)
        assert play(strategy, environment, problem, 5) == play(strategy, bare, problem, 5)


def test_outcomes_that_are_late_are_learnt_in_the_end() -> None:
    prompt, late = _trials(["ucb"], ["B", "H9"], runs=6, steps=400)
    random = _trials(["random"], ["H9"], runs=6, steps=400)[0]
    assert prompt.mean < late.mean < 0.8 * random.mean


def test_goals_are_for_whole_runs() -> None:
    (cut,) = _trials(["random"], ["A"])
    (whole,) = _trials(["random"], ["E"], steps=500)
    assert (cut.missed, cut.full) == ([], False)
    assert (whole.missed, whole.full) == (["mean"], True)


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"unknown environment 'Z'.*known: A, B"):
        environments(["Z"])
    assert [one.name for one in environments([])] == [*"ABCDEF", "G1", "G2"]
    assert len(environments(["all"])) == len(ENVIRONMENTS)
    with pytest.raises(ConfigError, match="runs is 0"):
        StudySpec(contestants=(), environments=(), runs=0)
    with pytest.raises(ConfigError, match="may be given once"):
        StudySpec(contestants=_contestants("ucb", "ucb"), environments=())


def test_the_command(tmp_path: Path) -> None:
    picture = tmp_path / "regret.svg"
    who = ["--strategy", "thompson:posterior=gaussian"]
    where = ["--environment", "b", "--environment", "F"]
    asked = ["study", "regret", *who, *where, "--runs", "2", "--steps", "30", "--jobs", "1"]
    table = CliRunner().invoke(app, [*asked, "--picture", str(picture)])
    assert table.exit_code == 0, table.output
    assert "thompson:posterior=gaussian" in table.stdout
    assert "random" in table.stdout
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    machine = CliRunner().invoke(app, [*asked, "--json"])
    trials = json.loads(machine.stdout)["trials"]
    assert [(t["environment"], t["strategy"]) for t in trials] == [
        (where, who) for where in ("B", "F") for who in ("thompson:posterior=gaussian", "random")
    ]
    assert all(len(t["regrets"]) == 2 for t in trials)


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--full", "--steps", "9"], "leave --steps out"),
        (["--strategy", "ucbb"], "Did you mean 'ucb'"),
        (["--picture", "regret.bmp"], ".png, .svg or .pdf"),
    ],
)
def test_bad_options_are_told_before_anything_is_played(arguments: list[str], say: str) -> None:
    done = CliRunner().invoke(app, ["study", "regret", *arguments])
    assert done.exit_code == 2
    assert say in " ".join(done.output.split())
