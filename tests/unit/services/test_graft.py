"""One graft by itself: what it does at each batch and what is due at each epoch."""

from typing import Any

import pytest
import torch

from esper.contracts.config import Growth
from esper.contracts.seeds import SeedState
from esper.services.tamiyo.growth.graft import Graft
from tests.unit.services.small_run import BATCHES_PER_EPOCH, KEPT, SmallRun, settings

pytestmark = pytest.mark.trains
GROWTH: dict[str, Any] = {"train_epochs": 3, "blend_epochs": 2, "max_active": 1}


def begun() -> tuple[SmallRun, Graft]:
    """A run whose first graft began at the end of epoch 1."""
    run = SmallRun(config=settings(**GROWTH)).run(2)
    (graft,) = run.engine.grafts.grafts
    return run, graft


@pytest.mark.parametrize(
    ("train_epochs", "blend_epochs", "end"), [(1, 1, 3), (2, 1, 4), (1, 3, 5), (3, 2, 6)]
)
def test_each_state_lasts_as_long_as_it_is_set(
    train_epochs: int, blend_epochs: int, end: int
) -> None:
    growth = settings(train_epochs=train_epochs, blend_epochs=blend_epochs, max_active=1)
    run = SmallRun(config=growth).run(end + 1)
    (verdict,) = [v for report in run.reports for v in report.verdicts]
    assert (verdict.began, verdict.epoch) == (1, end)


def test_nothing_is_due_before_its_time() -> None:
    _, graft = begun()
    growth = Growth(**GROWTH)
    assert [graft.due(epoch, growth, measured=True) for epoch in (1, 2, 3)] == [None] * 3
    assert graft.due(4, growth, measured=True) is None  # no batch has reached its layer
    graft.trained = 1
    assert graft.due(4, growth, measured=True) is SeedState.BLENDING
    assert graft.due(9, growth, measured=True) is SeedState.BLENDING  # and late is late, not never


def test_it_learns_in_the_shadow_and_alpha_stays_zero() -> None:
    run, graft = begun()
    before = [p.detach().clone() for p in graft.kernel.module.parameters()]
    run.epoch(2)
    after = list(graft.kernel.module.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert float(graft.layer.seed(graft.decision.seed_idx).alpha) == 0.0
    assert all(p.grad is None for p in after)


def test_alpha_goes_up_in_equal_steps_over_all_blending_epochs() -> None:
    run, graft = begun()
    run.run(5, first=2)
    assert graft.state is SeedState.BLENDING
    alphas = []
    for _ in range(2):
        for batch in run.train_batches():
            run.step(batch)
            alphas.append(float(graft.layer.seed(graft.decision.seed_idx).alpha))
    ramp = 2 * BATCHES_PER_EPOCH
    assert alphas == pytest.approx([i / ramp for i in range(1, ramp + 1)])
    run.step(next(run.train_batches()))
    assert float(graft.layer.seed(graft.decision.seed_idx).alpha) == 1.0


def test_its_optimizer_state_goes_over_to_the_users() -> None:
    run, graft = begun()
    run.run(4, first=2)
    gathered = {
        name: graft._optimizer.state[p]["exp_avg"].clone()
        for name, p in graft.kernel.module.named_parameters()
    }
    run.model.eval()
    graft.layer.advance(graft.decision.seed_idx, SeedState.BLENDING)
    graft.blend(3, ramp_batches=BATCHES_PER_EPOCH)
    for name, p in graft.kernel.module.named_parameters():
        assert torch.equal(run.optimizer.state[p]["exp_avg"], gathered[name])
        assert any(p is held for held in run.optimizer.param_groups[-1]["params"])
    graft.settle(kept=False)
    held = {id(p) for p in run.optimizer.param_groups[0]["params"]}
    assert not held & {id(p) for p in graft.kernel.module.parameters()}


def test_a_seed_optimizer_of_the_users_is_used() -> None:
    made: list[torch.optim.Optimizer] = []

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.01, momentum=0.5))
        return made[-1]

    run = SmallRun(config=settings(), worth=[KEPT], options={"seed_optimizer": make}).run(10)
    assert len(made) == 1 + len(run.facts("decision"))  # one to see that it can be made
    assert any(graft["kept"] for graft in run.facts("graft"))


def spoil(run: SmallRun, graft: Graft, spoilt: list[bool]) -> None:
    """Hand on batches that the user's loop passed over where they are spoilt."""
    for (x, y), bad in zip(run.train_batches(), spoilt, strict=True):
        run.engine.on_batch_end((x * float("nan"), y) if bad else (x, y))


def test_a_batch_with_nan_is_passed_over_and_ends_no_graft() -> None:
    run, graft = begun()
    for epoch in (2, 3):
        spoil(run, graft, [epoch == 2, False, True, False, True, True])
        before = [p.detach().clone() for p in graft.kernel.module.parameters()]
        assert all(p.isfinite().all() for p in before)
        assert run.engine.on_epoch_end(epoch).verdicts == ()
    spoil(run, graft, [False, False, False, False, True, True])
    assert run.engine.on_epoch_end(4).verdicts == ()
    assert graft.state is SeedState.BLENDING


@pytest.mark.parametrize("learnt", [0, 3])
def test_a_kernel_whose_batches_are_all_spoilt_ends_and_names_them(learnt: int) -> None:
    run, graft = begun()
    for epoch in (2, 3, 4):
        spoil(run, graft, [epoch > 2 or i >= learnt for i in range(BATCHES_PER_EPOCH)])
        if epoch == 3:  # what was counted is in the checkpoint
            assert graft.state_dict()["spoilt"] == 2 * BATCHES_PER_EPOCH - learnt
        report = run.engine.on_epoch_end(epoch)
    (verdict,) = report.verdicts
    wanted = f"the gradients of the last {18 - learnt} of 18 batches that it trained on were NaN"
    assert wanted in verdict.why
    assert "are the batches that on_batch_end gets, and the loss, finite?" in verdict.why
    assert len(run.facts("failure")) == (learnt > 0)
    assert len(run.facts("withdrawal")) == (learnt == 0)
