"""Optimizers, schedulers, models and loops of many kinds: growth fits in with each."""

import random  # noqa: TID251 (to see that nobody else draws from it)
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError
from tests.unit.services.small_run import (
    BATCH_SIZE,
    BATCHES_PER_EPOCH,
    KEPT,
    Batch,
    SmallRun,
    host,
    loss_fn,
    same,
    settings,
    teacher,
    tell,
)

EPOCHS = 7
SOON = settings(train_epochs=1)


def grew(run: SmallRun) -> bool:
    """Whether kernels were judged, and some had a part in the output."""
    return bool(run.facts("graft")) and run.engine.used > 0


def held_once(run: SmallRun) -> bool:
    """Whether the optimizer holds each trained parameter once: host, blended and absorbed."""
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    isolated = {
        id(p)
        for graft in run.engine.grafts.grafts
        if graft.state == "training"
        for p in graft.kernel.module.parameters()
    }
    return sorted(held) == sorted({id(p) for p in run.model.parameters()} - isolated)


# --- optimizers -----------------------------------------------------------------------------------


def named_adam(model: nn.Module) -> Optimizer:
    return Adam(model.named_parameters(), lr=0.02)


@pytest.mark.trains
def test_named_parameters_stay_unique_when_a_slot_grows_twice() -> None:
    run = SmallRun(
        config=SOON,
        worth=[KEPT],
        make_optimizer=named_adam,
        layers=("fc1",),
        seeds=["lowrank"],
    ).run(6)
    names = [name for group in run.optimizer.param_groups for name in group["param_names"]]
    assert len(run.engine.layers["fc1"].fossils) >= 2
    assert len(set(names)) == len(names)
    assert held_once(run)


@pytest.mark.trains
def test_an_optimizer_that_cannot_be_made_again_is_an_error_at_once() -> None:
    class Odd(SGD):
        def __init__(self, params: Any, speed: float) -> None:
            super().__init__(params, lr=speed)

    with pytest.raises(ConfigError, match=r"cannot make a Odd .* Pass seed_optimizer"):
        SmallRun(make_optimizer=lambda model: Odd(model.parameters(), 0.01))
    run = SmallRun(
        make_optimizer=lambda model: Odd(model.parameters(), 0.01),
        options={"seed_optimizer": lambda params: Odd(params, 0.01)},
    )
    assert grew(run.run(6))


# --- schedulers -----------------------------------------------------------------------------------


def one_cycle(optimizer: Optimizer) -> Any:
    return schedulers.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=EPOCHS * BATCHES_PER_EPOCH, cycle_momentum=True
    )


def chained(optimizer: Optimizer) -> Any:
    warm = schedulers.LinearLR(optimizer, start_factor=0.1, total_iters=3)
    fade = schedulers.ExponentialLR(optimizer, gamma=0.9)
    return schedulers.SequentialLR(optimizer, [warm, fade], milestones=[3])


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: schedulers.CosineAnnealingLR(optimizer, T_max=EPOCHS),
        lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
        one_cycle,
        chained,
    ],
    ids=["lambda", "cosine", "plateau", "one-cycle", "sequential"],
)
def test_schedulers_drive_kernels_as_they_drive_the_host(
    make_scheduler: Callable[[Optimizer], Any],
) -> None:
    def rates(optimizer: Optimizer) -> list[float]:
        return [float(group["lr"]) for group in optimizer.param_groups]

    control = SmallRun(grown=False, make_scheduler=make_scheduler)
    run = SmallRun(config=SOON, worth=[KEPT], make_scheduler=make_scheduler)
    by_batch = isinstance(run.scheduler, schedulers.OneCycleLR)
    for epoch in range(EPOCHS):
        for batch in run.train_batches():
            run.step(batch)
            if by_batch:
                run.scheduler.step()
                control.optimizer.step()
                control.scheduler.step()
        run.engine.on_epoch_end(epoch)
        if not by_batch:
            # The same numbers for both, so that the plateau is seen by both.
            step = (1.0,) if isinstance(run.scheduler, schedulers.ReduceLROnPlateau) else ()
            control.optimizer.step()
            run.scheduler.step(*step)
            control.scheduler.step(*step)
        (wanted,) = rates(control.optimizer)
        assert rates(run.optimizer) == pytest.approx([wanted])
    assert grew(run)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_grows_as_the_plain_one_does() -> None:
    def run(backend: str) -> tuple[list[str], list[float]]:
        torch.manual_seed(0)
        model = esper.wrap(host(restless=False), ["fc1", "fc2"], ["glu", "lowrank"])
        used: Any = torch.compile(model, backend=backend) if backend else model
        optimizer = Adam(model.parameters(), lr=0.02)
        holdout = [teacher(96, seed=2)]
        tamiyo = esper.Tamiyo(used, optimizer, loss_fn=loss_fn, holdout=holdout, config=settings())
        tell(tamiyo, [KEPT])
        inputs, targets = teacher(BATCHES_PER_EPOCH * BATCH_SIZE, seed=1)
        for epoch in range(6):
            for batch in zip(torch.split(inputs, 32), torch.split(targets, 32), strict=True):
                optimizer.zero_grad()
                loss_fn(used, batch).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                tamiyo.on_batch_end(batch)
            tamiyo.on_epoch_end(epoch)
        assert tamiyo.tracker.events.scope == "Sequential"
        kept = [event.data["kernel_id"] for event in tamiyo.events() if event.kind == "graft"]
        losses = [event.data["holdout_loss"] for event in tamiyo.events() if event.kind == "epoch"]
        return kept, losses

    kept, losses = run("")
    assert kept
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        ours, found = run(backend)
        assert ours == kept
        assert found == pytest.approx(losses, rel=1e-3)


@pytest.mark.trains
def test_a_float64_model_whether_converted_before_or_after_wrapping() -> None:
    before = SmallRun(model=host().double(), dtype=torch.float64).run(7)
    model = esper.wrap(host(), ["fc1", "fc2"], list(SmallRun.seeds)).double()
    inner = SmallRun(grown=False, model=model, dtype=torch.float64)
    inner.tamiyo = inner._tamiyo()
    inner.run(7)
    for run in (before, inner):
        assert grew(run)
        assert {p.dtype for p in run.model.parameters()} == {torch.float64}
    assert before.facts("graft") == inner.facts("graft")


@pytest.mark.trains
def test_a_frozen_host_learns_through_its_kernels_alone() -> None:
    model = SmallRun(grown=False, model=host(restless=False)).run(12).model
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.requires_grad_(False).zero_grad()
    run = SmallRun(
        model=model,
        make_optimizer=lambda _: Adam([{"params": []}], lr=0.02),
        config=settings(train_epochs=3),
    ).run(14)
    assert any(graft["kept"] for graft in run.facts("graft"))
    assert run.reports[-1].holdout_loss < 0.97 * run.reports[0].holdout_loss
    for name, p in run.model.named_parameters():
        if ".host" in name:
            assert torch.equal(p, frozen[name.replace(".host", "")])
            assert p.grad is None
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for n, p in run.model.named_parameters() if ".host" in n}


# --- loops ----------------------------------------------------------------------------------------


@pytest.mark.trains
def test_clipping_and_accumulation_leave_the_law_whole() -> None:
    def train(run: SmallRun, epochs: int) -> SmallRun:
        for epoch in range(epochs):
            run.model.train()
            for number, batch in enumerate(run.train_batches(), start=1):
                loss = loss_fn(run.model, batch).mean() / 2
                loss.backward()  # type: ignore[no-untyped-call]
                run.losses.append(float(loss.detach()))
                if number % 2 == 0:
                    nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
                    run.optimizer.step()
                    run.optimizer.zero_grad()
                if run.tamiyo is not None:
                    run.tamiyo.on_batch_end(batch)
            if run.tamiyo is not None:
                run.reports.append(run.tamiyo.on_epoch_end(epoch))
        return run

    config = settings(train_epochs=2, max_active=1)
    assert same(train(SmallRun(config=config), 3).state(), train(SmallRun(grown=False), 3).state())
    assert grew(train(SmallRun(config=config), 8))


class Loud(Dataset[Batch]):
    """Examples that draw random numbers from everywhere when read, as augmentation does."""

    def __init__(self) -> None:
        self.inputs, self.targets = teacher(96, seed=2)

    def __len__(self) -> int:
        return len(self.inputs)

    @override
    def __getitem__(self, index: int) -> Batch:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(())
        return self.inputs[index], self.targets[index]


@pytest.mark.trains
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_loader_as_holdout_leaves_the_law_whole(shuffle: bool) -> None:
    loader = DataLoader(Loud(), batch_size=40, shuffle=shuffle)
    config = settings(train_epochs=2)
    others = [random.getstate(), list(np.random.get_state())]  # noqa: NPY002
    run = SmallRun(config=config, options={"holdout": loader}).run(3)
    assert same(run.state(), SmallRun(grown=False).run(3).state())
    assert grew(run.run(8, first=3))
    assert random.getstate() == others[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), others[1], strict=True))  # noqa: NPY002


PAIRED = settings(train_epochs=1, keep_stderrs=1e6)  # the same verdicts in both


@pytest.fixture(scope="module")
def in_order() -> SmallRun:
    return SmallRun(config=PAIRED).run(7)


@pytest.mark.trains
@pytest.mark.parametrize("own", [True, False])
def test_examples_are_paired_though_the_holdout_is_shuffled_at_every_pass(
    own: bool, in_order: SmallRun
) -> None:
    draws = torch.Generator().manual_seed(3) if own else None
    examples = TensorDataset(*teacher(96, seed=2))
    loader = DataLoader(examples, batch_size=40, shuffle=True, generator=draws)
    shuffled = SmallRun(config=PAIRED, options={"holdout": loader}).run(7)
    assert in_order.facts("graft")
    for ours, theirs in zip(shuffled.facts("graft"), in_order.facts("graft"), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], rel=1e-3, abs=1e-5)
        assert ours["stderr"] == pytest.approx(theirs["stderr"], rel=1e-3)
