"""Failures that go on, and modes around the calls: the training ends as without Esper."""

from typing import Any

import pytest
import torch
from typing_extensions import override

from esper.contracts.errors import KernelError
from esper.services.tamiyo.growth.aside import Aside
from esper.stores.memory import MemoryStore
from tests.integration.test_loops_side import SIDE, Switch, side_run
from tests.unit.services.small_run import SmallRun, loss_fn, same, settings

pytestmark = pytest.mark.trains


@pytest.mark.parametrize("first", [2, 3])
def test_a_holdout_that_goes_on_failing_ends_the_graft(first: int) -> None:
    switch = Switch(RuntimeError("out of memory"))
    run = side_run(lambda model, batch: (loss_fn if model.training else switch)(model, batch))
    run.run(first)
    switch.on = True
    run.run(6, first=first)
    verdicts = [verdict for report in run.reports for verdict in report.verdicts]
    assert [v.why for v in verdicts] == [
        f"{SIDE}the held-out loss could not be measured, epoch after epoch"
    ]
    assert not run.facts("failure", "outcome")
    assert run.engine.used == 0
    blended = first == 3  # what was not blended in yet, never is
    assert any(step.new == "blending" for r in run.reports for step in r.steps) is blended
    assert blended or same(run.state(), SmallRun(grown=False).run(6).state())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_mode_without_gradients_around_the_calls_changes_nothing(mode: Any) -> None:
    plain = SmallRun(config=settings(train_epochs=1)).run(6)
    run = SmallRun(config=settings(train_epochs=1))
    on_batch_end, on_epoch_end = run.engine.on_batch_end, run.engine.on_epoch_end
    run.engine.on_batch_end = mode()(on_batch_end)  # type: ignore[method-assign]
    run.engine.on_epoch_end = mode()(on_epoch_end)  # type: ignore[method-assign]
    assert same(run.run(6).state(), plain.state())
    assert [e.data for e in run.events()] == [e.data for e in plain.events()]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_loss_without_gradients_is_refused(mode: Any) -> None:
    with pytest.raises(KernelError, match="gave losses without gradients, so no kernel can learn"):
        side_run(mode()(loss_fn))


class MuteError(Exception):
    @override
    def __str__(self) -> str:
        raise ValueError("nothing to say")


def test_an_exception_without_a_text() -> None:
    attempts = Aside()
    with attempts("the probe") as attempt:
        raise MuteError
    assert attempt.why.startswith("the probe failed: MuteError")


def no_space(*_: Any, **__: Any) -> None:
    raise OSError("no space left")


def test_a_store_of_another_package_that_fails_holds_up_no_graft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control = side_run(loss_fn).run(5)
    run = side_run(loss_fn)
    monkeypatch.setattr(MemoryStore, "append", no_space)  # not a StoreError
    assert same(run.run(5).state(), control.state())
    verdicts = [report.verdicts for report in run.reports]
    assert verdicts == [report.verdicts for report in control.reports]
    assert any(verdicts)


def test_a_log_that_fails_holds_up_no_graft(monkeypatch: pytest.MonkeyPatch) -> None:
    control = side_run(loss_fn).run(5)
    run = side_run(loss_fn)
    monkeypatch.setattr(run.engine.log, "step", no_space)
    monkeypatch.setattr(run.engine.tracker, "record_end", no_space)
    assert same(run.run(5).state(), control.state())
    assert any(report.verdicts for report in run.reports)
