"""The plan says before training what a run will do, and changes nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.execution.passes.timing import PassTimes
from esper.services.tamiyo.plan import Plan
from tests.unit.services import small_run
from tests.unit.services.small_run import SmallRun, same

TIMES = PassTimes(
    training_ms=10.0, probe_ms=8.0, shadow_ms=6.0, evaluation_ms=3.0, examples=32, held_out=32
)


def planned(**given: Any) -> Plan:
    """Plan of a small run, with times that do not hang on the machine."""
    return replace(SmallRun(**given).engine.plan(), times=TIMES)


def test_it_says_what_will_happen() -> None:
    """The host has 6 x 4 + 4, 4 + 4 and 4 x 3 + 3 parameters: 51; an eighth of 480 is 60."""
    config = small_run.settings(budget=480, train_epochs=3)
    plan = planned(config=config, seeds=["glu", "attention"])
    first, second = plan.layers
    assert (first.name, first.module, first.layout) == ("fc1", "Linear", "BF")
    assert list(first.kernels) == ["glu"]
    assert first.misfits == {"attention": "for sequence layers"}
    assert all(0 < size <= plan.kernel_budget == 60 for size in second.kernels.values())
    text = " ".join(str(plan).split())
    for said in (
        "2 of 2 wrapped layers can grow",
        f"fc1: Linear on (B, F); glu {first.kernels['glu']}; not attention (for sequence layers)",
        "axes: B examples, F features",
        "budget: 480 parameters, 9.4 x the host's 51; up to 60 a kernel",
        "trains for 3 epoch(s) and is blended in for 1; up to 2 at once",
        "a probe every 4 batches",
        "3 batch(es) of about 32 examples",
        "an estimate: an epoch takes 1.23 x",
    ):
        assert said in text


def test_it_fits_a_terminal() -> None:
    names = "a_rather_long_name_of_a_layer"
    layer = nn.Sequential()
    layer.add_module(names, small_run.host())
    plan = planned(model=layer, layers=(f"{names}.fc1", f"{names}.fc2"))
    assert max(map(len, str(plan).splitlines())) <= 80


def test_the_cost_is_that_of_its_passes() -> None:
    """A probe each 4 batches, 8 / 10 a probe; evaluation of a tenth, 3 / 10; shadow 6 / 10 each."""
    plan = planned()
    assert plan.epoch_cost(0) == pytest.approx(1 + 0.25 * 0.8 + 0.1 * 0.3)
    assert plan.epoch_cost(2) == pytest.approx(1 + 0.25 * 0.8 + 0.1 * 0.3 + 2 * 0.6)
    told = replace(plan, batches=6)  # one probe in six batches, three of the holdout
    assert told.epoch_cost(0) == pytest.approx(1 + 0.8 / 6 + 0.5 * 0.3)
    assert "1 probe(s) an epoch" in str(told)
    assert replace(plan, times=None).epoch_cost(0) is None


def test_widths_that_keep_step_have_kernels_of_their_own_size() -> None:
    """From (4, 8) units to (14, 27): 10 units of 7 + 8, 19 units of 4 + 1 + 3; then 190 cross."""
    layers = (nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    config = small_run.settings(budget=500, evenly=True, kernel_share=1.0, starts=2)
    given = {"model": nn.Sequential(*layers), "widen": ("auto",)}
    plan = planned(config=config, **given)
    assert [set(layer.kernels.values()) for layer in plan.layers] == [{150}, {152}]
    text = " ".join(str(plan).split())
    assert "up to 2 at once, 2 begun at the end of one epoch" in text
    assert "read at each epoch's end, and once more for each verdict" in text
    assert plan.cohort == 0, "ucb learns from no audition"
    resting = planned(config=small_run.settings(measure_on=False))
    text = " ".join(str(resting).split())
    assert "read at each epoch's end until growth is over" in text
    assert "1 x once growth is over" in text


@pytest.mark.parametrize(("policy", "cohort"), [("heuristic", 4), ("learned", 8)])
def test_an_audition_counts_as_one_graft_and_costs_as_many(policy: str, cohort: int) -> None:
    """Four seeds in each of two layers; a shadow step is 6 / 10 of a batch."""
    config = small_run.settings(strategy="auto").model_copy(update={"policy": policy})
    plan = planned(config=config)
    assert plan.cohort == cohort
    text = " ".join(str(plan).split())
    assert (
        f"up to 2 at once; an audition of up to {cohort} seeds counts as one in each layer" in text
    )
    assert f", {1.23 + 0.6 * cohort:.2f} x with {cohort} that audition" in text
    alone = config.seed_selection.model_copy(update={"audition": "never"})
    assert planned(config=config.model_copy(update={"seed_selection": alone})).cohort == 0


def test_it_is_json() -> None:
    data = json.loads(json.dumps(planned().to_json()))
    assert data["budget"] == 400
    assert len(data["epoch_costs"]) == 3
    assert data["layers"][0]["name"] == "fc1"


def test_what_does_not_fit_is_told_in_a_word() -> None:
    plan = planned(config=small_run.settings(budget=12), seeds=["lowrank", "gate"])
    assert plan.layers[0].kernels == {"lowrank": 10}
    assert plan.layers[0].misfits == {"gate": "needs 17"}


def test_a_layer_that_is_not_called_is_said_to_be_so() -> None:
    model = small_run.host()
    model.spare = nn.Linear(3, 3)
    model.forward = lambda x: model.fc2(model.fc1(x))  # type: ignore[operator]
    plan = planned(model=model, layers=("fc1", "spare"))
    assert plan.layers[1].objection == "was not called yet"
    assert "spare: Linear; was not called yet" in str(plan)
    assert "1 of 2" in str(plan)


def test_a_pass_that_fails_leaves_the_cost_open() -> None:
    run = SmallRun()

    def broken(model: Any, batch: Any) -> Any:
        raise RuntimeError("no more of this")

    run.engine.training.loss_fn.function = broken  # type: ignore[attr-defined]
    plan = run.engine.plan()
    assert plan.times is None
    assert "cost: not known" in str(plan)
    assert plan.to_json()["epoch_costs"] == [None, None, None]


@pytest.mark.trains
def test_it_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plain, told = SmallRun(), SmallRun(options={"plan": True})
    assert capsys.readouterr().out.startswith("plan: 2 of 2 wrapped layers can grow\n")
    for number in range(5):
        torch.manual_seed(number)
        plain.epoch(number)
        torch.manual_seed(number)
        told.engine.plan(batches=6)
        told.engine.plan(batch=told.holdout[0])
        told.epoch(number)
    assert same(plain.state(), told.state())
    assert plain.events() == told.events()


def test_it_leaves_no_gradients() -> None:
    run = SmallRun()
    run.engine.plan()
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert isinstance(run.engine, esper.Tamiyo)


def test_kernels_that_train_with_the_host_need_no_shadow_steps() -> None:
    plan = planned(config=small_run.settings(train_epochs=0, ramp=0.0))
    text = " ".join(str(plan).split())
    assert "a graft trains with the host, and is judged after 1; up to 2 at once" in text
    assert "for each seed in training" not in text
    assert plan.epoch_cost(0) == plan.epoch_cost(2)
