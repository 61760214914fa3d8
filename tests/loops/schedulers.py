"""Schedulers: the rate of a kernel is that of its host at every step."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD, Adam, swa_utils
from torch.optim import lr_scheduler as schedulers

from tests.integration.optimizer_doubles import ScheduleWrapper, WarmupScheduler
from tests.loops.situations import works
from tests.loops.trial import HOLDOUT, TRAIN, Net, Trial, loss_fn


def count(optimizer: Any) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def scheduled(
    trial: Trial,
    make: Callable[[Any], Any],
    *,
    given: bool = True,
    by_batch: bool = False,
    by_loss: bool = False,
) -> None:
    """Train with a scheduler; after each of its steps all groups must have one rate."""
    model = trial.wrap(Net())
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler, sizes = make(optimizer), {count(optimizer)}
    tamiyo = trial.tamiyo(model, optimizer, scheduler=scheduler if given else None)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            if by_batch:
                scheduler.step()
            tamiyo.on_batch_end(batch)
            sizes.add(count(optimizer))
            assert len({float(group["lr"]) for group in optimizer.param_groups}) == 1
        tamiyo.on_epoch_end(epoch)
        if by_loss:
            with torch.no_grad():
                scheduler.step(loss_fn(model, HOLDOUT[0]).mean())
        elif not by_batch:
            scheduler.step()
        assert len({float(group["lr"]) for group in optimizer.param_groups}) == 1
    assert not trial.grown or len(sizes) > 1


@works
def cosine(trial: Trial) -> None:
    """`CosineAnnealingLR`, stepped after each epoch."""
    scheduled(trial, lambda optimizer: schedulers.CosineAnnealingLR(optimizer, T_max=4))


@works
def lambdas(trial: Trial) -> None:
    """`LambdaLR`, which keeps a function for each group."""
    scheduled(trial, lambda optimizer: schedulers.LambdaLR(optimizer, lambda e: 0.9**e))


@works
def one_cycle(trial: Trial) -> None:
    """`OneCycleLR`, stepped after each batch, with momentum."""
    steps = len(trial.epochs) * len(TRAIN)
    scheduled(
        trial,
        lambda optimizer: schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps),
        by_batch=True,
    )


@works
def cyclic(trial: Trial) -> None:
    """`CyclicLR`, stepped after each batch."""
    scheduled(trial, lambda o: schedulers.CyclicLR(o, 0.01, 0.05, step_size_up=3), by_batch=True)


@works
def plateau(trial: Trial) -> None:
    """`ReduceLROnPlateau`, stepped with the held-out loss."""
    scheduled(
        trial,
        lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=0, min_lr=[1e-3]),
        by_loss=True,
    )


@works
def warmup_then_decay(trial: Trial) -> None:
    """`SequentialLR` of a warm-up and a decay."""

    def make(optimizer: Any) -> Any:
        parts = [
            schedulers.LinearLR(optimizer, 0.1, total_iters=2),
            schedulers.ExponentialLR(optimizer, 0.9),
        ]
        return schedulers.SequentialLR(optimizer, parts, milestones=[2])

    scheduled(trial, make)


@works
def chained(trial: Trial) -> None:
    """`ChainedScheduler` of two."""

    def make(optimizer: Any) -> Any:
        parts = [
            schedulers.ConstantLR(optimizer, 0.5, total_iters=2),
            schedulers.MultiStepLR(optimizer, [1, 3]),
        ]
        return schedulers.ChainedScheduler(parts, optimizer)

    scheduled(trial, make)


@works
def averaged_rates(trial: Trial) -> None:
    """`SWALR`, which anneals every group to its rate."""
    scheduled(trial, lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3))


@works
def of_another_library(trial: Trial) -> None:
    """A scheduler of another library, with lists of its own names, as timm's."""
    scheduled(trial, WarmupScheduler)


@works
def wrapped_scheduler(trial: Trial) -> None:
    """A scheduler in a wrapper, as accelerate's."""
    scheduled(trial, lambda o: ScheduleWrapper(schedulers.ExponentialLR(o, 0.9)))


@works
def forgotten_scheduler(trial: Trial) -> None:
    """A scheduler that Tamiyo was not given: kernels join the groups that it moves."""
    scheduled(trial, lambda o: schedulers.LambdaLR(o, lambda e: 0.9**e), given=False)


@works
def rates_by_hand(trial: Trial) -> None:
    """The rate is set by hand: `for group in optimizer.param_groups: group["lr"] = ...`."""

    class ByHand:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.rate = optimizer, 0.05

        def step(self) -> None:
            self.rate *= 0.9
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate

    scheduled(trial, ByHand, given=False, by_batch=True)


@works
def rates_by_position(trial: Trial) -> None:
    """The rate is set by hand, by position: `optimizer.param_groups[i]["lr"] = rates[i]`."""

    class ByPosition:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer
            self.rates = [group["lr"] for group in optimizer.param_groups]

        def step(self) -> None:
            self.rates = [rate * 0.9 for rate in self.rates]
            for i, group in enumerate(self.optimizer.param_groups):
                group["lr"] = self.rates[i]

    scheduled(trial, ByPosition, given=False, by_batch=True)


@works
def two_schedulers(trial: Trial) -> None:
    """Two optimizers with a scheduler each: `scheduler=[first, second]`."""
    model: Any = trial.wrap(Net(), ["fc1", "fc2"])
    pair = [SGD(model.fc1.parameters(), 0.05), Adam(model.fc2.parameters(), 0.02)]
    fades = [schedulers.LambdaLR(pair[0], lambda e: 0.9**e), schedulers.StepLR(pair[1], 1, 0.5)]
    tamiyo = trial.tamiyo(model, pair, scheduler=fades)
    for epoch in trial.epochs:
        for batch in TRAIN:
            for optimizer in pair:
                optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            for optimizer in pair:
                optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
        for fade in fades:
            fade.step()
        for optimizer, fade in zip(pair, fades, strict=True):
            assert {group["lr"] for group in optimizer.param_groups} == set(fade.get_last_lr())
