"""Nothing that Esper does on the side stops a training, and no blueprint pays for it."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError, KernelError
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.report import EpochReport
from tests.integration.optimizer_doubles import Bookkeeper
from tests.unit.services.small_run import Batch, SmallRun, loss_fn, same, settings

SIDE = "failed by the loop: "


class Switch:
    """A loss that fails on the side while it is switched on; the training itself calls another."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.on = False

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.on:
            raise self.error
        return loss_fn(model, batch)


def side_run(switch: Any, **more: Any) -> SmallRun:
    """A run whose own steps use `loss_fn`, and whose passes on the side use ``switch``."""
    options = {"loss_fn": switch, **more.pop("options", {})}
    return SmallRun(config=settings(train_epochs=1, max_active=1), options=options, **more)


# --- what fails on the side -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no memory"), ZeroDivisionError(), OSError("disk")])
def test_passes_that_fail_end_the_graft_and_not_the_training(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    switch = Switch(error)
    run = side_run(switch).run(2)
    (graft,) = run.engine.grafts.grafts
    switch.on = True
    with caplog.at_level(logging.WARNING):
        run.run(5, first=2)
    control = SmallRun(grown=False).run(5)
    assert same(run.state(), control.state())
    (verdict,) = run.reports[2].verdicts
    assert verdict.why.startswith(SIDE)
    assert type(error).__name__ in verdict.why
    assert (verdict.kept, verdict.reward) == (False, None)
    # Withdrawn, so nothing is held against the blueprint and no choice stays open.
    assert not run.facts("failure", "outcome")
    assert [data["decision"] for data in run.facts("withdrawal")] == [graft.decision.decision_id]
    assert run.engine.used == 0
    # Said once, not at each of 30 batches.
    told = [r for r in caplog.records if "the training of a kernel failed" in r.getMessage()]
    assert len(told) == 1
    assert told[0].exc_info is not None


def test_a_holdout_that_fails_is_a_missing_measurement() -> None:
    switch = Switch(OSError("stale file handle"))
    run = side_run(switch).run(3)
    (graft,) = run.engine.grafts.grafts
    for batch in run.train_batches():
        run.step(batch)
    switch.on = True
    report = run.engine.on_epoch_end(3)
    assert report.holdout_loss != report.holdout_loss
    assert report.decision is None
    assert "the held-out loss could not be measured" in report.reason
    assert not report.verdicts
    assert run.engine.grafts.grafts == [graft]
    switch.on = False  # and it is judged at the next epoch
    (verdict,) = run.run(5, first=4).reports[-1].verdicts
    assert verdict.reward is not None
    assert not run.facts("rollback", "failure")


def test_a_counterfactual_that_fails_is_not_held_against_the_blueprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("calibration")

    run = side_run(loss_fn).run(3)
    monkeypatch.setattr("esper.services.tamiyo.growth.graft.counterfactuals", broken)
    (verdict,) = run.run(4, first=3).reports[-1].verdicts
    assert verdict.why == f"{SIDE}the counterfactual of a kernel failed: RuntimeError: calibration"
    assert not run.facts("failure", "outcome")
    assert len(run.facts("withdrawal")) == 1


def test_a_seed_optimizer_that_fails_at_once_is_refused() -> None:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        raise TypeError("which group?")

    with pytest.raises(ConfigError, match=r"^seed_optimizer\(params\) fails: TypeError: which"):
        side_run(loss_fn, options={"seed_optimizer": make})


def test_a_seed_optimizer_that_fails_on_a_kernel() -> None:
    made: list[torch.optim.Optimizer] = []

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if made:
            raise TypeError("which group?")
        made.append(Adam(parameters))
        return made[0]

    run = side_run(loss_fn, options={"seed_optimizer": make}).run(4)
    assert same(run.state(), SmallRun(grown=False).run(4).state())
    assert "the optimizer of a kernel failed: TypeError: which group?" in run.reports[-1].reason
    assert len(run.facts("withdrawal")) == len(run.facts("decision")) > 0
    assert run.engine.used == 0


def test_an_optimizer_that_takes_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return Bookkeeper(model.parameters())

    run = side_run(loss_fn, make_optimizer=make).run(2)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("one group only")

    monkeypatch.setattr(run.optimizer, "add_param_group", refuse)
    (verdict,) = run.run(3, first=2).reports[-1].verdicts
    assert verdict.why == f"{SIDE}blending a kernel in failed: RuntimeError: one group only"
    assert same(run.state(), SmallRun(grown=False, make_optimizer=make).run(3).state())


def test_a_strategy_that_fails_leaves_no_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    run = side_run(loss_fn).run(1)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(run.engine.integration, "_build", broken)
    run.run(3, first=1)
    assert run.reports[-1].reason == "the choice of a graft failed: OSError: no space left"
    assert all(not book.reserved for book in run.engine.selector._layers.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_the_process_passes_through(error: BaseException) -> None:
    switch = Switch(error)
    run = side_run(switch).run(2)
    switch.on = True
    with pytest.raises(type(error)):
        run.run(3, first=2)


def test_a_failure_is_logged_once_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    aside = Aside()
    with caplog.at_level(logging.WARNING):
        for error in (ValueError("a"), ValueError("b"), KeyError("c")):
            with aside("the probe") as attempt:
                raise error
    assert [r.getMessage() for r in caplog.records] == [
        "the probe failed: ValueError: a; the training goes on",
        "the probe failed: KeyError: 'c'; the training goes on",
    ]
    assert attempt.why == "the probe failed: KeyError: 'c'"


# --- layers that some passes do not reach ---------------------------------------------------------


class Tasks(nn.Module):
    """A trunk and one head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({"p": nn.Linear(8, 3), "q": nn.Linear(8, 3)})

    @override
    def forward(self, x: Tensor, task: str) -> Tensor:
        y: Tensor = self.heads[task](torch.relu(self.trunk(x)))
        return y


def task_loss(model: nn.Module, batch: tuple[Tensor, Tensor, str]) -> Tensor:
    return F.mse_loss(model(batch[0], batch[2]), batch[1], reduction="none").mean(dim=1)


def train_tasks(
    order: str, holdout: str, epochs: int = 10
) -> tuple[esper.Tamiyo, list[EpochReport]]:
    plain = SmallRun(grown=False)
    torch.manual_seed(0)
    model = esper.wrap(Tasks(), ["heads.p", "heads.q"], ["lowrank", "glu"])
    optimizer = Adam(model.parameters(), lr=0.02)
    tamiyo = esper.Tamiyo(
        model,
        optimizer,
        loss_fn=task_loss,
        holdout=[(*plain.holdout[i % 3], task) for i, task in enumerate(holdout)],
        config=settings(train_epochs=1, keep_stderrs=0.0),
    )
    reports = []
    for epoch in range(epochs):
        for (x, y), task in zip(plain.train_batches(), order, strict=False):
            optimizer.zero_grad()
            task_loss(model, (x, y, task)).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end((x, y, task))
        reports.append(tamiyo.on_epoch_end(epoch))
    return tamiyo, reports


@pytest.mark.parametrize("order", ["pqpqpqpqpq", "pppqpppqpp", "pq"])
def test_tasks_that_alternate_grow_at_both_heads(order: str) -> None:
    tamiyo, reports = train_tasks(order, "pq")
    grown = {e.data["layer"] for e in tamiyo.events() if e.kind == "outcome"}
    assert grown == {"heads.p", "heads.q"}
    assert all(v.reward is not None for report in reports for v in report.verdicts)


def test_a_layer_in_no_holdout_batch_may_grow_once_it_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        tamiyo, _ = train_tasks("pqpqpqpqpq", "p")
    assert "layer heads.q was called in no batch of the holdout" in caplog.text
    assert "heads.q" in {e.data["layer"] for e in tamiyo.events() if e.kind == "decision"}


def test_a_resumed_run_knows_the_layers_that_were_seen() -> None:
    tamiyo, _ = train_tasks("pqpqpqpqpq", "p", epochs=2)
    model = esper.wrap(Tasks(), ["heads.p", "heads.q"], ["lowrank", "glu"])
    optimizer = Adam(model.parameters(), lr=0.02)
    resumed = esper.Tamiyo(
        model,
        optimizer,
        loss_fn=task_loss,
        holdout=[(*SmallRun(grown=False).holdout[0], "p")],
        config=settings(train_epochs=1, keep_stderrs=0.0),
    )
    assert resumed.layers["heads.q"].spec is None
    model.load_state_dict(tamiyo.training.model.state_dict())
    resumed.load_state_dict(tamiyo.state_dict())
    assert resumed.layers["heads.q"].spec == tamiyo.layers["heads.q"].spec is not None


def test_a_layer_that_nothing_calls_says_so() -> None:
    tamiyo, reports = train_tasks("pppppppppp", "p", epochs=4)
    assert {e.data["layer"] for e in tamiyo.events() if e.kind == "decision"} == {"heads.p"}
    assert "heads.q was not called yet" in reports[2].reason


class Dropped(nn.Module):
    """A block that is left out of a part of the passes, drawn anew each time."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if not self.training or float(torch.rand(())) >= self.chance:
            h = h + torch.relu(self.b(h))
        y: Tensor = self.c(h)
        return y


def test_a_layer_that_is_dropped_learns_from_the_passes_that_reach_it() -> None:
    torch.manual_seed(0)
    run = SmallRun(model=Dropped(0.5), layers=("b",), config=settings(train_epochs=2)).run(10)
    verdicts = [v for report in run.reports for v in report.verdicts]
    assert verdicts
    assert all(v.reward is not None for v in verdicts)


def test_a_layer_that_is_never_trained_ends_its_graft_without_blame() -> None:
    torch.manual_seed(0)
    run = SmallRun(model=Dropped(0.0), layers=("b",), config=settings(train_epochs=1)).run(2)
    (graft,) = run.engine.grafts.grafts
    dropped = run.model
    assert isinstance(dropped, Dropped)
    dropped.chance = 1.0
    run.run(6, first=2)
    (verdict,) = [v for report in run.reports for v in report.verdicts]
    assert (verdict.epoch, graft.trained) == (5, 0)
    assert "no batch's loss depended on layer 'b'" in verdict.why
    assert not run.facts("failure")


# --- losses, inputs and batches -------------------------------------------------------------------


def test_a_last_batch_of_one_may_squeeze_its_loss_to_a_number() -> None:
    def squeezed(model: nn.Module, batch: Batch) -> Tensor:
        return loss_fn(model, batch).squeeze()

    run = side_run(squeezed).run(2)
    (graft,) = run.engine.grafts.grafts
    before = graft.trained
    x, y = run.train_part
    run.model.eval()
    run.engine.on_batch_end((x[:1], y[:1]))
    assert graft.trained == before + 1
    assert graft.fault is None


def test_an_input_of_integers_is_refused_with_the_way_out() -> None:
    model = esper.wrap(nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)), ["0"])
    batch = (torch.randint(0, 9, (32, 5)), torch.zeros(32, 3))
    with pytest.raises(KernelError, match=r"layer '0' cannot grow: it reads int64, .*wrap the lay"):
        esper.Tamiyo(model, Adam(model.parameters()), loss_fn=loss_fn, holdout=[batch])


def test_an_input_of_integers_leaves_its_layer_out(caplog: pytest.LogCaptureFixture) -> None:
    model = esper.wrap(nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)), ["0", "1"])
    batch = (torch.randint(0, 9, (32, 5)), torch.zeros(32, 3))
    with caplog.at_level(logging.WARNING):
        tamiyo = esper.Tamiyo(model, Adam(model.parameters()), loss_fn=loss_fn, holdout=[batch])
    assert "layer 0 cannot grow: it reads int64" in caplog.text
    assert set(tamiyo.grower.left_out) == {"0"}


class Both(nn.Module):
    """Gives a second output while it trains, as heads with an auxiliary loss do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    @override
    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return (y, y) if self.training else y


def both_loss(model: nn.Module, batch: Batch) -> Tensor:
    y = model(batch[0])
    y = y[0] if isinstance(y, tuple) else y
    return F.mse_loss(y, batch[1], reduction="none").mean(dim=1)


def test_a_layer_that_gives_a_tuple_in_training_is_left_out() -> None:
    both = nn.Sequential(nn.Linear(6, 6), Both())
    run = SmallRun(model=both, layers=("0", "1"), loss_fn=both_loss).run(8)
    assert "gives a tuple in training" in run.engine.grower.left_out["1"]
    assert {data["layer"] for data in run.facts("decision")} == {"0"}
    assert all(v.reward is not None for report in run.reports for v in report.verdicts)


def test_a_function_that_takes_its_batch_apart_gets_a_copy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def popping(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss_fn(model, (batch["x"], batch.pop("labels")))

    run = SmallRun(grown=False)
    model = esper.wrap(run.model, ["fc1"])
    holdout = [{"x": x, "labels": y} for x, y in run.holdout]
    with caplog.at_level(logging.WARNING):
        tamiyo = esper.Tamiyo(model, run.optimizer, loss_fn=popping, holdout=holdout)
    assert "loss_fn takes entries out of its batch" in caplog.text
    losses = [tamiyo.on_epoch_end(epoch).holdout_loss for epoch in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert all(sorted(batch) == ["labels", "x"] for batch in holdout)


def test_a_function_that_normalises_in_place_changes_no_holdout() -> None:
    def normalising(model: nn.Module, batch: Batch) -> Tensor:
        batch[0].sub_(3.0).div_(2.0)
        return loss_fn(model, batch)

    run = SmallRun(grown=False)
    kept = [x.clone() for x, _ in run.holdout]
    model = esper.wrap(run.model, ["fc1"])
    tamiyo = esper.Tamiyo(model, run.optimizer, loss_fn=normalising, holdout=run.holdout)
    first = tamiyo.on_epoch_end(0).holdout_loss
    assert tamiyo.on_epoch_end(1).holdout_loss == first
    assert all(torch.equal(x, k) for (x, _), k in zip(run.holdout, kept, strict=True))


def test_a_square_of_losses_is_a_broadcast_by_mistake() -> None:
    def broadcast(model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = (model(batch[0])[:, :1] - batch[1][:, 0]).square()
        return found

    with pytest.raises(ConfigError, match=r"returned \(32, 32\), as predictions \(B, 1\) against"):
        SmallRun(loss_fn=broadcast)
