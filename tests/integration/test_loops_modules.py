"""Loops in which the user's own code looks at the model's modules, parameters and state."""

import torch

from esper.contracts.seeds import SeedState
from esper.services.tamiyo.report import EpochReport
from tests.unit.services.small_run import SmallRun, settings

NEVER_BLENDS = settings(train_epochs=50)
BLENDS_SOON = settings(train_epochs=1, keep_stderrs=0.0)


def penalised(run: SmallRun) -> None:
    """Two epochs with a weight penalty, clipping by norm and a log of gradient norms."""
    norms = []
    for number in range(2):
        for batch in run.train_batches():
            run.model.train()
            run.optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in run.model.parameters())
            (run.loss_fn(run.model, batch).mean() + 0.01 * penalty).backward()  # type: ignore[no-untyped-call]
            norms += [float(p.grad.norm()) for p in run.model.parameters() if p.grad is not None]
            assert all(p.grad is not None for p in run.model.parameters())
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
            run.optimizer.step()
            if run.tamiyo is not None:
                run.tamiyo.on_batch_end(batch)
        if run.tamiyo is not None:
            run.tamiyo.on_epoch_end(number)


def test_what_runs_over_all_parameters_sees_the_host_alone_until_blending() -> None:
    grown = SmallRun(config=NEVER_BLENDS)
    penalised(grown)
    control = SmallRun(grown=False)
    penalised(control)
    assert any(SeedState.TRAINING in layer.seed_states for layer in grown.engine.layers.values())
    assert grown.engine.used > 0
    theirs = list(control.model.parameters())
    ours = list(grown.model.parameters())
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_log_of_gradient_norms_runs_through_a_graft() -> None:
    run = SmallRun(config=BLENDS_SOON)

    def report_of(number: int) -> EpochReport:
        for batch in run.train_batches():
            run.step(batch)
            assert all(p.grad is not None for p in run.model.parameters())
        return run.engine.on_epoch_end(number)

    reports = [report_of(number) for number in range(6)]
    assert {step.new for report in reports for step in report.steps} >= {"training", "blending"}
