"""The event log of a run: plain facts, each once, without a clock."""

from math import inf, nan

import pytest

from esper.contracts.health import GraftRequest, HealthSignal
from esper.contracts.site import Site
from esper.records.event_writer import EventWriter
from esper.services.tamiyo.report import EpochReport, Step
from esper.services.tamiyo.run_log import RunLog
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import SmallRun, settings


def a_log(store: MemoryStore | None = None) -> RunLog:
    return RunLog(EventWriter(store or MemoryStore(), scope="net", run="night"))


def report(epoch: int, loss: float) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        holdout_loss=loss,
        holdout_accuracy=None,
        used=0,
        budget=10,
        steps=(),
        verdicts=(),
        decisions=(),
        reason="because",
    )


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_a_number_is_written_as_missing(bad: float) -> None:
    log = a_log()
    log.epoch(report(0, bad))
    log.health([HealthSignal(layer_name="a", epoch=0, gradient_rms=bad, input_rms=1.5)])
    log.request(
        GraftRequest(site=Site("a"), epoch=0, urgency=bad, kernel_budget=3, reason="because")
    )
    epoch, health, request = (event.data for event in log.events())
    assert epoch["holdout_loss"] is None
    assert (health["gradient_rms"], health["input_rms"]) == (None, 1.5)
    assert request["urgency"] is None


def test_the_same_thing_said_twice_counts_once() -> None:
    log = a_log()
    step = Step(layer_name="a", seed_idx=1, blueprint="glu", old="x", new="y", why="because")
    for _ in range(2):
        log.step(step, epoch=3, kernel_id="a:1:glu:0", parameters=4)
        log.rollback(epoch=4, to_epoch=2, why="because")
        log.epoch(report(3, 0.5))
    assert [event.kind for event in log.events()] == ["lifecycle", "rollback", "epoch"]


def test_a_log_reads_its_own_run_alone() -> None:
    store = MemoryStore()
    mine = a_log(store)
    others = [("net", "day"), ("other", "night")]
    for log in (mine, *[RunLog(EventWriter(store, scope=s, run=r)) for s, r in others]):
        log.epoch(report(0, 1.0))
    assert [(event.scope, event.run) for event in mine.events()] == [("net", "night")]


def test_requests_and_refusals_of_one_epoch_stand_side_by_side() -> None:
    log = a_log()
    for name in ("a", "b"):
        asked = GraftRequest(site=Site(name), epoch=2, urgency=0.5, kernel_budget=3, reason="why")
        log.request(asked)
        log.refusal(asked, ValueError("no"))
    assert [(e.kind, e.data["layer"]) for e in log.events()] == [
        ("request", "a"),
        ("refusal", "a"),
        ("request", "b"),
        ("refusal", "b"),
    ]


def test_no_event_of_a_run_has_a_clock_in_it() -> None:
    logs = [
        [(event.op_id, event.data) for event in SmallRun(config=settings()).run(8).events()]
        for _ in range(2)
    ]
    assert logs[0] == logs[1]
