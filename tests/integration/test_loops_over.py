"""When no graft can begin any more: what is measured then, and what a run does at its start."""

from functools import partial
from math import isnan
from typing import Any

import pytest
import torch

from esper.contracts.seeds import SeedState
from esper.services.tamiyo.growth import graft
from tests.integration.test_own_loop_checkpoints import a_run, everything, restore, saved
from tests.unit.services.small_run import KEPT, SmallRun, same, settings

ENDS: dict[str, dict[str, Any]] = {
    "the budget is used up": {"budget": 60, "kernel_budget": 30},
    "too late": {"epochs": 7},
}


def grown(*, measure_on: bool, **growth: Any) -> SmallRun:
    config = settings(train_epochs=1, max_active=1, measure_on=measure_on, **growth)
    return SmallRun(config=config, worth=(KEPT,))


@pytest.mark.trains
@pytest.mark.parametrize("end", ENDS)
def test_once_growth_is_over_nothing_is_measured_and_the_training_is_the_same(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[graft.Baseline] = []
    measure = graft.Training.measure

    def noted(training: graft.Training) -> graft.Baseline:
        measured.append(measure(training))
        return measured[-1]

    monkeypatch.setattr(graft.Training, "measure", noted)
    resting = grown(measure_on=False, **ENDS[end]).run(12)
    fewer = len(measured)
    going_on = grown(measure_on=True, **ENDS[end]).run(12)
    over = [report.over for report in resting.reports]
    last = next(epoch for epoch, why in enumerate(over) if why)
    assert all(why.startswith(end) for why in over[last:])
    assert all(report.measured for report in resting.reports[: last + 1])
    assert not any(report.measured for report in resting.reports[last + 1 :])
    assert all(isnan(report.holdout_loss) for report in resting.reports[last + 1 :])
    assert str(resting.reports[-1]).startswith("epoch 11: held-out loss not measured, ")
    assert f"growth is over: {end}" in str(resting.reports[-1])
    assert {data["epoch"] for data in resting.facts("health")} == set(range(last + 1))
    ends = [(data["epoch"], data.get("over", "")) for data in resting.facts("epoch")]
    assert ends == list(enumerate(over))
    assert (fewer, len(measured)) == (last + 1, last + 1 + 12)
    assert all(report.measured for report in going_on.reports)
    assert same(resting.state(), going_on.state())
    assert resting.facts("decision", "outcome", "graft", "lifecycle") == going_on.facts(
        "decision", "outcome", "graft", "lifecycle"
    )


@pytest.mark.trains
def test_a_run_that_rests_is_resumed_bit_for_bit() -> None:
    config = settings(train_epochs=1, max_active=1, budget=60, kernel_budget=30, measure_on=False)
    make = partial(a_run, config=config)
    whole, trail = make(), []
    for epoch in range(15):
        trail.append(saved(whole))
        whole.epoch(epoch)
    assert not whole.reports[-1].measured
    for boundary in range(15):
        again = restore(make(), trail[boundary]).run(15, first=boundary)
        assert same(everything(again), everything(whole)), boundary


@pytest.mark.trains
def test_growth_goes_on_when_there_is_room_again() -> None:
    """A state dict of an earlier time takes the kernels away, and so makes room."""
    run = grown(measure_on=False, **ENDS["the budget is used up"])
    early = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.run(9)
    assert not run.reports[-1].measured
    run.model.load_state_dict(early)
    run.run(13, first=9)
    assert any(report.measured for report in run.reports[9:])
    assert any(report.decisions for report in run.reports[9:])


@pytest.mark.trains
@pytest.mark.parametrize("widen", [(), ("auto",)])
@pytest.mark.parametrize("starts", [1, 2])
def test_several_grafts_may_begin_at_the_end_of_one_epoch(starts: int, widen: Any) -> None:
    def host() -> torch.nn.Module:
        linear = partial(torch.nn.Linear, 5, 5)
        return torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.ReLU(), linear(), torch.nn.ReLU(), torch.nn.Linear(5, 3)
        )

    config = settings(
        starts=starts, train_epochs=0, ramp=0.0, cooldown_epochs=2, budget=200, kernel_budget=60
    )
    run = SmallRun(config=config, model=host(), layers=("0", "2"), widen=widen, worth=(KEPT,))
    for epoch in range(8):
        run.epoch(epoch)
        assert run.engine.used <= 200
    begun = [len(report.decisions) for report in run.reports]
    first = begun.index(starts)
    assert max(begun) == starts
    assert begun[first + 1] == 0  # the cooldown is between epochs, not within one
    decisions = run.reports[first].decisions
    assert len({decision.layer_name for decision in decisions}) == starts
    assert run.reports[first].decision == decisions[0]
    chosen = [s for s in run.reports[first].steps if s.new == SeedState.GERMINATED]
    assert [(s.layer_name, s.seed_idx) for s in chosen] == [
        (decision.layer_name, decision.seed_idx) for decision in decisions
    ]
