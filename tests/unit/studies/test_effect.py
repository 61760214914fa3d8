"""The effect study: paired runs, a folder that repeats nothing, figures by hand."""

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result
from typing_extensions import override

from esper.cli.main import app
from esper.contracts.errors import ConfigError, EsperError, StoreError
from esper.services.tamiyo.settings import config_from
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.stores.sqlite import SqliteStore
from esper.studies.trained.cells import LEAST_TEACHER, EffectRun, cells, runs, slot_names
from esper.studies.trained.counting import Counting, Meter
from esper.studies.trained.effect import EffectSpec, make_spec, study
from esper.studies.trained.engines import Ended, Engine, InProcess, OverProcesses, engine
from esper.studies.trained.figures import SLOTS, figures
from esper.studies.trained.intervals import mean, ratio
from esper.studies.trained.setups import SETUPS, Setup
from esper.studies.trained.study_folder import StudyFolder
from esper.studies.trained.training import Trained
from esper.tasks import TASKS
from esper.widths.wrap import wrap
from tests.rays import under_ray

DIGITS = SETUPS["digits"]
EPOCHS = 5
"""Digits: two epochs of warm-up, two in the shadow, one of blending."""


def named(found: Sequence[Any]) -> dict[str, Any]:
    return {one.cell if isinstance(one, Trained) else one.cell.name: one for one in found}


@final
class Refuses(Engine):
    """Trains nothing."""

    @override
    def start(self, run: EffectRun, history: bytes | None) -> None:
        raise AssertionError(f"{run.name} is trained again")

    @override
    def ended(self) -> Ended:
        raise AssertionError("nothing was started")

    @override
    def close(self) -> None:
        pass


# --- a small study --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec() -> EffectSpec:
    return make_spec(["digits"], seeds=1, epochs=EPOCHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return StudyFolder(tmp_path_factory.mktemp("effect"))


@pytest.fixture(scope="module")
def results(spec: EffectSpec, folder: StudyFolder) -> dict[str, Trained]:
    seen: list[tuple[int, int, str]] = []
    found = study(spec, folder, InProcess(), lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == list(range(1, len(found) + 1))
    return named(found)


@pytest.mark.trains
def test_runs_are_paired_until_the_first_kernel_is_blended_in(results: dict[str, Trained]) -> None:
    control = results["control"]
    assert (control.grafts, control.choices) == ([], [])
    assert len(results) == len(cells(DIGITS))
    for name, run in results.items():
        alike = run.test_losses[:4] == control.test_losses[:4]
        assert alike != name.startswith("teacher"), name
        assert name == "control" or len(run.grafts) == 1
        assert name == "control" or sum(run.flops) > sum(control.flops)


@pytest.mark.trains
def test_each_cell_chooses_as_it_says(results: dict[str, Trained]) -> None:
    for index, name in enumerate(slot_names(DIGITS)):
        assert {one["seed"] for one in results[name].choices} == {index}
        assert {one["blueprint"] for one in results[name].choices} == {DIGITS.seeds[index]}
    for name in ("homogeneous", "homogeneous-fixed"):
        assert {one["blueprint"] for one in results[name].choices} == {DIGITS.seeds[0]}
    assert results["homogeneous"].test_losses == results["homogeneous-fixed"].test_losses
    assert {one["strategy"] for one in results["random"].choices} == {"random"}
    assert {one["blueprint"] for one in results["placebo"].choices} == {"placebo"}
    assert not any(one["kept"] for one in results["placebo"].grafts)
    for name in ("audition", "homogeneous-audition", "placebo"):
        assert [one["seed"] for one in results[name].choices] == [0, 1, 2, 3]
        assert len(results[name].auditions) == 4
        assert len(results[name].grafts) == 1, "the best of the four"
    assert not results["homogeneous"].auditions


@pytest.mark.trains
def test_warm_runs_inherit_what_teachers_wrote(
    spec: EffectSpec, folder: StudyFolder, results: dict[str, Trained], tmp_path: Path
) -> None:
    assert results["teacher3"].run_seed == LEAST_TEACHER + 2
    found = named(spec.runs())
    for name, count in (("warm1", 1), ("warm3", 3)):
        history = folder.history(found[name])
        assert history is not None
        path = tmp_path / f"{name}.db"
        path.write_bytes(history)
        store = SqliteStore(path)
        taught = {event.run for _, event in store.read(kinds=["outcome"])}
        store.close()
        assert taught == {f"digits-s0-teacher{number}" for number in range(1, count + 1)}
    assert folder.history(found["cold"]) is None


@pytest.mark.trains
def test_a_run_that_has_ended_is_not_repeated_and_a_lost_one_comes_out_the_same(
    spec: EffectSpec, folder: StudyFolder, results: dict[str, Trained]
) -> None:
    assert named(study(spec, folder, Refuses())) == results
    found = named(spec.runs())
    folder.file(found["warm1"]).unlink()
    seen: list[str] = []
    again = named(study(spec, folder, InProcess(), lambda *told: seen.append(told[2])))
    assert seen == ["digits-s0-warm1"]
    assert without_clock(again["warm1"]) == without_clock(results["warm1"])
    longer = make_spec(["digits"], seeds=1, epochs=EPOCHS + 1)
    assert folder.read(named(longer.runs())["control"]) is None, "another setting, another run"
    assert folder.others(longer.runs()) == len(results)


@pytest.mark.trains
def test_a_damaged_file_is_named(spec: EffectSpec, tmp_path: Path) -> None:
    folder, run = StudyFolder(tmp_path), spec.runs()[0]
    folder.file(run).write_text("{}")
    with pytest.raises(StoreError, match=r"digits-s0-control.*delete it"):
        folder.read(run)


@pytest.mark.dist
@pytest.mark.trains
@pytest.mark.slow
def test_processes_train_the_same(spec: EffectSpec, results: dict[str, Trained]) -> None:
    found = named(spec.runs())
    over = OverProcesses(2)
    try:
        for name in ("control", "cold"):
            over.start(found[name], None)
        for _ in range(2):
            run, result, history = over.ended()
            assert without_clock(result) == without_clock(results[run.cell.name])
            assert history is None
        broken = replace(found["cold"], setup=replace(DIGITS, layers=("nowhere",)))
        over.start(broken, None)
        with pytest.raises(ConfigError, match="nowhere") as caught:
            over.ended()
        assert "in run digits-s0-cold of the effect study" in caught.value.__notes__
        over.start(found["cold"], None)
        for process in active_children():
            process.kill()
        with pytest.raises(EsperError, match=r"run digits-s0-cold was lost.*same command again"):
            over.ended()
    finally:
        over.close()


KILLED_ONCE = """
import os
from dataclasses import replace
from pathlib import Path
from esper.studies.trained import engines
from esper.studies.trained.effect import make_spec, study
from esper.studies.trained.study_folder import StudyFolder

train, killed = engines.train_run, Path.cwd() / "killed"

def killed_once(run, history):
    if run.cell.name == "seed0" and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), 9)
    return train(run, history)

engines.train_run = killed_once
spec = make_spec(["digits"], cells=["warm1"], seeds=2, epochs=EPOCHS)
study(spec, StudyFolder(Path("ray")), engines.engine("ray", None, 2))
broken = engines.engine("ray", 1, 2)
run = spec.runs()[1]
broken.start(replace(run, setup=replace(run.setup, layers=("nowhere",))), None)
try:
    broken.ended()
except Exception as error:
    print(type(error).__name__, error, *error.__notes__)
broken.close()
"""


@pytest.mark.dist
@pytest.mark.trains
@pytest.mark.slow
def test_ray_trains_the_same_though_a_process_is_killed(
    results: dict[str, Trained], tmp_path: Path
) -> None:
    text = under_ray(KILLED_ONCE.replace("EPOCHS", str(EPOCHS)), tmp_path)
    assert "\nConfigError unknown layer 'nowhere'; known: fc1" in f"\n{text}"
    assert "in run digits-s0-seed0 of the effect study" in text
    assert (tmp_path / "killed").exists()
    spec = make_spec(["digits"], cells=["warm1"], seeds=2, epochs=EPOCHS)
    first = [one for one in study(spec, StudyFolder(tmp_path / "ray"), Refuses()) if not one.seed]
    assert {"control", "seed0", "teacher1", "warm1"} <= {one.cell for one in first}
    for one in first:
        assert without_clock(one) == without_clock(results[one.cell])


def without_clock(result: Trained) -> Trained:
    return replace(result, seconds=0.0)


# --- set-ups and cells ----------------------------------------------------------------------------


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_every_seed_of_a_set_up_fits_every_site(setup: Setup) -> None:
    task = TASKS.create(setup.task)
    model = wrap(task.host(0), list(setup.layers), list(setup.seeds))
    tamiyo = Tamiyo(
        model,
        task.optimizer(model),
        loss_fn=task.loss_fn,
        holdout=[next(iter(task.validation_batches()))],
        config=config_from(setup.settings({"strategy": "auto"}, "heuristic")),
    )
    assert len(set(setup.seeds)) == 4
    for layer in tamiyo.layers.values():
        assert tamiyo.integration.candidates(layer, setup.kernel_budget) == [0, 1, 2, 3]
    tamiyo.finish()
    assert setup.verdict(10) == setup.window[-1] < setup.epochs


def test_teachers_have_run_seeds_of_their_own() -> None:
    made = [run for seed in range(20) for run in runs(DIGITS, seed)]
    teaching = [run.run_seed for run in made if run.cell.teacher]
    assert (len(set(teaching)), len(teaching)) == (60, 80)  # one of them says where, too
    assert min(teaching) >= LEAST_TEACHER
    with pytest.raises(ConfigError, match="run seed 1000"):
        runs(DIGITS, 1000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": ["digit"]}, "Did you mean 'digits'"),
        ({"tasks": ["digits", "digits"]}, "named twice"),
        ({"seeds": 0}, "at least 1"),
        ({"tasks": ["digits"], "epochs": 4}, "take at least 5"),
    ],
)
def test_a_study_that_cannot_be_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_spec(**given)


def test_a_look_is_two_tasks_and_three_seeds() -> None:
    spec = make_spec(quick=True)
    assert ([setup.task for setup in spec.setups], spec.seeds) == (["digits", "letter"], 3)
    assert len(make_spec().setups) == 7


@pytest.mark.parametrize(
    ("name", "jobs", "says"),
    [("rays", None, "Did you mean 'ray'"), ("processes", 0, "--jobs is 0")],
)
def test_an_engine_that_cannot_be_is_refused(name: str, jobs: int | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        engine(name, jobs, 2)


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.studies.trained.engines.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "esper-morph\[ray\]"'):
        engine("ray", None, 2)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_named(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # a port that nobody listens on
        bound.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=rf"RAY_ADDRESS='{address}'.*ray start --head"):
            engine("ray", None, 2)


def test_one_job_needs_no_process() -> None:
    assert isinstance(engine("processes", 1, 8), InProcess)


# --- counting -------------------------------------------------------------------------------------


def test_a_sample_of_batches_counts_as_much_as_all() -> None:
    layer, batch = nn.Linear(3, 5), torch.ones(7, 3)

    def step(number: int) -> None:
        layer(batch).sum().backward()
        if not number % 10:
            layer(batch)  # as a probe would

    whole, meter = Counting(), Meter(probe_every=10)
    with whole:
        for number in range(1, 51):
            step(number)
        layer(batch)
    for number in range(1, 51):
        with meter.batch():
            step(number)
    with meter.epoch_end():
        layer(batch)
    assert meter.flops == [whole.flops]


# --- figures --------------------------------------------------------------------------------------


def trained(cell: str, seed: int, gain: float, *, choices: Sequence[int] = ()) -> Trained:
    """A run whose test loss is ``gain`` below that of its control from the first graft on."""
    before = DIGITS.warmup_epochs
    losses = [1.0 + seed] * before + [1.0 + seed - gain] * (DIGITS.epochs - before)
    graft = {"layer_name": "fc1", "reward": gain, "kept": True, "parameters": 9}
    return Trained(
        name=f"digits-s{seed}-{cell}",
        task="digits",
        cell=cell,
        seed=seed,
        run_seed=seed,
        test_losses=losses,
        test_accuracies=[0.5] * DIGITS.epochs,
        parameters=10,
        flops=[30 if choices else 10],
        seconds=2.0,
        grafts=[{**graft, "seed_idx": one, "blueprint": DIGITS.seeds[one]} for one in choices],
        choices=[{"layer": "fc1", "seed": one} for one in choices],
        auditions=[],
        machine={},
    )


GAINS = {"seed0": 4.0, "seed1": 2.0, "seed2": 2.0, "seed3": 0.0, "random": 1.0, "cold": 3.0}


def some_results(gains: dict[str, float]) -> list[Trained]:
    found = []
    for seed, scale in ((0, 0.1), (1, 0.2)):
        for cell in cells(DIGITS):
            chosen = [0, 1, 1, 2] if cell.name == "cold" else [0]
            if cell.name == "control":
                found.append(trained("control", seed, 0.0))
            else:
                gain = scale * gains.get(cell.name, 1.0)
                found.append(trained(cell.name, seed, gain, choices=chosen))
    return found


def test_figures_by_hand() -> None:
    found = figures(DIGITS, some_results(GAINS))
    rows = {row.cell: row for row in found.cells}
    names = [row.cell for row in found.cells]
    assert names.index(SLOTS) == names.index("random") - 1
    epochs = len(DIGITS.window)
    assert epochs == 30  # ten grafts of three epochs
    cold, slots = rows["cold"].effect, rows[SLOTS].effect
    assert cold is not None
    assert slots is not None
    assert slots.area.value == pytest.approx(epochs * 2.0 * 0.15)
    assert cold.over_slots.value == pytest.approx(1.5)
    assert cold.over_slots.low == pytest.approx(1.5)
    assert cold.over_random.value == pytest.approx(3.0)
    assert cold.gains == pytest.approx((0.45, 0.45, 0.45))
    assert rows["cold"].compute == 3.0
    assert rows["cold"].reward == pytest.approx(0.45)
    assert rows["cold"].least_share == 0.0  # seed 3 was never chosen
    assert rows["cold"].tried == 3 / 12
    assert rows["control"].effect is None
    assert rows["teacher1"].effect is None
    assert not found.null
    assert found.sound
    assert found.sizes == {"fc1": {DIGITS.seeds[0]: 9}}
    assert found.history["warm1"].value == pytest.approx(1 / 3)
    assert found.history["warm1-silent"].value == pytest.approx(1.0)


def test_placebos_are_counted() -> None:
    graft = {"layer_name": "fc1", "seed_idx": 0, "blueprint": "placebo", "reward": 0.1,
             "kept": False, "parameters": 9}  # fmt: skip
    given = [
        replace(
            one,
            auditions=[{"passed": i < 1 + one.seed} for i in range(20)],
            grafts=[{**graft, "passed": False}] * 5,
        )
        if one.cell == "placebo"
        else replace(one, auditions=[{"gain": 1.0}])
        for one in some_results(GAINS)
    ]
    found = figures(DIGITS, given).placebos
    assert found is not None
    assert (found.shadow.judged, found.shadow.passed, found.shadow.share) == (40, 3, 3 / 40)
    assert (found.shadow.low, found.shadow.high) == pytest.approx((0.0258, 0.1986), abs=1e-4)
    assert (found.blended.judged, found.blended.passed) == (10, 0)
    assert found.too_many
    assert found.text() == (
        "placebos that would have been kept: in the shadow 3 of 40, 7.5 % [2.6, 19.9]; "
        "blended in 0 of 10, 0.0 % [0.0, 27.8]; 1 % is expected"
    )
    assert not figures(DIGITS, some_results(GAINS)).placebos


def test_a_null_task_and_a_faulty_study_are_named() -> None:
    bad = [
        replace(one, test_losses=[1.0 + one.seed + 0.1 * (-1) ** one.seed] * DIGITS.epochs)
        if one.cell in {"random", "homogeneous"}
        else one
        for one in some_results(GAINS)
    ]
    found = figures(DIGITS, bad)
    assert found.null
    assert not found.sound


def test_a_ratio_to_what_is_not_clear_of_zero_has_no_interval() -> None:
    assert ratio(np.array([1.0, 1.0]), np.array([3.0, -1.0])).value == 1.0
    assert ratio(np.array([1.0, 1.0]), np.array([3.0, -1.0])).low is None
    assert mean(np.array([2.0])).low is None, "one run seed has no interval"


# --- the command ----------------------------------------------------------------------------------


def command(folder: StudyFolder, *more: str, code: int = 0) -> Result:
    asked = ["study", "effect", "--task", "digits", "--seeds", "1", "--epochs", str(EPOCHS)]
    given = [*asked, "--jobs", "1", "--folder", str(folder.path), *more]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "80", "ESPER_DEBUG": None})
    assert done.exit_code == code, done.output
    return done


@pytest.mark.trains
def test_tables_have_every_cell_and_fit_a_terminal(
    folder: StudyFolder, results: dict[str, Trained]
) -> None:
    text = command(folder).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "homogeneous seeds: auto ÷ seed 0 is 1.000" in text
    told = " ".join(text.split())
    assert re.search(r"placebos that would have been kept: in the shadow \d of 4, \d", told)
    assert re.search(r"blended in \d of 1, \d.* 1 % is expected", told)
    for title in ("Effect, first ten grafts", "Gain over the control", "Cost, and what was chosen"):
        assert title in text
    for name in results:
        assert f"\n{name} " in text


@pytest.mark.trains
def test_a_report_is_one_file_that_names_every_run(
    folder: StudyFolder, results: dict[str, Trained], tmp_path: Path
) -> None:
    path, picture = tmp_path / "effect.html", tmp_path / "effect.svg"
    document = json.loads(
        command(folder, "--report", str(path), "--picture", str(picture), "--json").stdout
    )
    (task,) = document["tasks"]
    assert task["sound"] is True
    assert task["placebos"]["shadow"]["judged"] == 4
    assert task["placebos"]["blended"]["judged"] == 1
    assert {row["cell"] for row in task["cells"]} == {*results, SLOTS}
    assert all(Path(file).exists() for file in document["runs"].values())
    report = path.read_text(encoding="utf-8")
    assert "<svg" in report
    assert "Placebos that would have been kept: in the shadow " in report
    assert not re.search(r"(src|href)=\"?[^\"#]", report), "it needs no other file"
    for result in results.values():
        assert result.name in report
        assert Path(document["runs"][result.name]).name in report
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_a_report_that_cannot_be_written_is_refused_before_any_training(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    done = command(folder, "--report", str(tmp_path / "report.pdf"), code=2)
    assert "a report is .html" in done.stderr
    assert list(folder.path.glob("runs/*")) == []


def test_named_cells_bring_those_that_they_need() -> None:
    names = {run.name for run in runs(DIGITS, 0, ["warm1"])}
    needed = {"control", "random", "teacher1", "warm1", *slot_names(DIGITS)}
    assert names == {f"digits-s0-{name}" for name in needed}
    found = figures(DIGITS, [one for one in some_results(GAINS) if one.cell in needed])
    assert found.homogeneous is None
    assert found.history == {}
    assert found.sound is None
    with pytest.raises(ConfigError, match=r"(?s)warm2.*warm"):
        make_spec(["digits"], cells=["warm2"])
