"""Fleets: tasks that differ, adaptations that share one store, figures by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.contracts.errors import ConfigError
from esper.studies.trained import effect
from esper.studies.trained.cells import ALONE, TOGETHER, arms, cells, runs
from esper.studies.trained.effect import EffectSpec, make_fleet_spec, study
from esper.studies.trained.engines import InProcess
from esper.studies.trained.fleet import STEPS, Adaptation
from esper.studies.trained.fleet_figures import FleetFigures, FleetRow, fleet_figures
from esper.studies.trained.setups import FLEET
from esper.studies.trained.study_folder import StudyFolder
from esper.studies.trained.training import Trained, train_run

SMALL = replace(
    FLEET, layers=("blocks.0.value", "blocks.2.up"), epochs=5, train_epochs=1, adaptations=3
)
"""Two epochs of the head, one in the shadow, one of blending, one more."""


# --- tasks ----------------------------------------------------------------------------------------


def test_every_task_of_a_fleet_is_another_and_always_the_same() -> None:
    found = [Adaptation(5, number) for number in range(6)]
    for number, task in enumerate(found):
        data, again = task.load(), Adaptation(5, number).load()
        assert torch.equal(data.train[0], again.train[0])
        assert torch.equal(data.train[1], again.train[1])
        assert len(data.train[1]) == 10 * task.examples
        assert 100 <= len(data.train[1]) <= 240
        assert data.train[1].bincount().tolist() == [task.examples] * 10
        assert len(task.train_batches(0, 0)) == STEPS
        assert data.train[0].shape[1:] == (1, 28, 28)
        assert all(x.isfinite().all() for x, _ in (data.train, data.validation, data.test))
    assert len({tuple(task.load().train[0][0].flatten().tolist()) for task in found}) == 6
    assert Adaptation(6, 0).load().train[0].shape != found[0].load().train[0].shape


def test_an_arm_at_random_is_each_of_all_in_turn() -> None:
    """54 arms; 2000 draws of an even choice, 37 of each."""
    every = arms(FLEET)
    assert len(set(every)) == 18 * len(FLEET.seeds)
    run = next(one for one in runs(FLEET, 0) if one.cell.name == "random")
    drawn = [" ".join(part[0] for part in run.sites(number)) for number in range(2000)]
    assert drawn[:40] == [" ".join(part[0] for part in run.sites(n)) for n in range(40)]
    counts = [drawn.count(arm) for arm in every]
    assert sum(counts) == 2000
    assert min(counts) >= 15


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec() -> EffectSpec:
    return EffectSpec(setups=(SMALL,), seeds=1, cells=("auto", ALONE, TOGETHER))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return StudyFolder(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def results(spec: EffectSpec, folder: StudyFolder) -> dict[str, Trained]:
    return {one.cell: one for one in study(spec, folder, InProcess())}


@pytest.mark.trains
def test_each_adaptation_is_a_run_of_its_own_and_learns_from_those_before(
    results: dict[str, Trained],
) -> None:
    assert list(results) == ["control", "random", "auto", ALONE, TOGETHER]
    for name, run in results.items():
        assert len(run.test_losses) == len(run.test_accuracies) == len(run.flops) == 3
        if name != "control":
            assert {one["adaptation"] for one in run.grafts} == {0, 1, 2}
    control = results["control"]
    assert all(
        sum(run.flops) > sum(control.flops) for name, run in results.items() if name != "control"
    )
    for name in (ALONE, TOGETHER):
        points = [one["point"] for one in results[name].auditions]
        assert [points.count(point) for point in dict.fromkeys(points)] == [3] * 3
    alone, together = (results[name].grafts[0] for name in (ALONE, TOGETHER))
    assert alone == together, "there is no history yet"
    assert not results["auto"].auditions


@pytest.mark.trains
def test_nothing_warns_where_each_adaptation_has_an_arm_of_its_own(
    spec: EffectSpec, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = [one for seed in range(9) for one in runs(spec.setups[0], seed)
             if one.cell.name == "random"]  # fmt: skip
    run = next(one for one in drawn if one.sites(0)[0] != one.sites(1)[0])
    train_run(run, None)
    assert "wrap other layers" not in caplog.text


@pytest.mark.trains
def test_tables_json_report_and_picture_come_from_the_folder(
    folder: StudyFolder,
    results: dict[str, Trained],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(effect, "FLEET", SMALL)
    given = ["--adaptations", "3", "--seeds", "1", "--jobs", "1", "--folder", str(folder.path)]
    given += [f"--cell={name}" for name in ("auto", ALONE, TOGETHER)]
    shown = _command(*given).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert all(name in shown for name in results)
    report, picture = tmp_path / "fleet.html", tmp_path / "fleet.svg"
    done = _command(*given, "--json", "--report", str(report), "--picture", str(picture))
    data = json.loads(done.stdout)
    assert [row["cell"] for row in data["fleet"]["rows"]] == list(results)
    files = {Path(path).name for path in data["runs"].values()}
    text = report.read_text(encoding="utf-8")
    assert all(name in text for name in files)
    assert "<svg" in text
    assert "<script" not in text
    assert picture.exists()


def _command(*given: str, code: int = 0) -> Result:
    asked = ["study", "effect", "--scenario", "fleet", *given]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "80", "ESPER_DEBUG": None})
    assert done.exit_code == code, done.output
    return done


# --- figures --------------------------------------------------------------------------------------


def _trained(cell: str, seed: int, losses: Sequence[float]) -> Trained:
    graft: dict[str, Any] = {"layer_name": "fc1", "blueprint": "lora", "kept": True}
    plain = cell == "control"
    return Trained(
        name=f"fleet-s{seed}-{cell}",
        task="fleet",
        cell=cell,
        seed=seed,
        run_seed=seed,
        test_losses=list(losses),
        test_accuracies=[0.5] * len(losses),
        parameters=10,
        flops=[10 if plain else 20] * len(losses),
        seconds=3.0,
        grafts=[] if plain else [{"adaptation": at, **graft} for at in range(len(losses))],
        choices=[],
        auditions=[],
        machine={},
    )


def test_figures_by_hand() -> None:
    """Six adaptations, of which the first two are before the primary figure."""
    found = []
    for seed, scale in ((0, 1.0), (1, 2.0)):
        found += [
            _trained("control", seed, [10.0] * 6),
            _trained("random", seed, [10.0 - scale] * 6),
            _trained(ALONE, seed, [10.0 - scale] * 2 + [10.0 - 2 * scale] * 4),
            _trained(TOGETHER, seed, [10.0 - scale] * 2 + [10.0 - 3 * scale] * 4),
        ]
    figures = fleet_figures(replace(FLEET, adaptations=6), found)
    rows = {row.cell: row for row in figures.rows}
    assert figures.young == 2
    assert (figures.seeds, list(rows)) == (2, ["control", "random", ALONE, TOGETHER])
    assert _ratio(rows[TOGETHER]) == pytest.approx((3.0, 1.0))
    assert figures.history is not None
    assert figures.history.value == pytest.approx(1.5)
    gain = rows[TOGETHER].gain
    assert gain is not None
    assert gain.value == pytest.approx(4.5)
    assert rows[TOGETHER].curve == pytest.approx(((2 * 1 + 3 * 3) / 5, 3.0))
    assert rows[TOGETHER].compute == pytest.approx(2.0)
    assert (rows[TOGETHER].kept, rows[TOGETHER].arms) == (1.0, 1.0)
    assert rows["control"].gain is None


def _ratio(row: FleetRow) -> tuple[float | None, float | None]:
    assert row.over_random is not None
    assert row.young is not None
    return row.over_random.value, row.young.value


def test_there_is_a_default_for_everything_and_one_sentence_for_what_is_wrong() -> None:
    names = {run.cell.name for run in make_fleet_spec(seeds=1).runs()}
    assert names == {cell.name for cell in cells(FLEET)} - {"oracle"}
    assert {run.setup.adaptations for run in make_fleet_spec(quick=True).runs()} == {12}
    with pytest.raises(ConfigError, match="fleet of 2 adaptations"):
        make_fleet_spec(adaptations=2)
    with pytest.raises(ConfigError, match="fleet of 0 adaptations"):
        make_fleet_spec(adaptations=0)
    with pytest.raises(ConfigError, match="needs at least 1"):
        make_fleet_spec(seeds=0)
    with pytest.raises(ConfigError, match="cell of the effect study 'autos'"):
        make_fleet_spec(cells=["autos"])
    for option, value in (("--task", "digits"), ("--epochs", "0")):
        refused = _command(option, value, code=2)
        assert f"{option} is of another scenario than fleet" in " ".join(refused.stderr.split())


def test_without_auditions_no_figure_says_what_history_adds() -> None:
    found = [_trained("control", 0, [1.0] * 3), _trained("random", 0, [0.5] * 3)]
    figures: FleetFigures = fleet_figures(replace(FLEET, adaptations=3), found)
    assert figures.history is None
    assert figures.rows[1].over_random is not None
