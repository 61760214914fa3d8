"""Kernels have the rates of their hosts at every step, whoever sets them: scheduler or hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW
from torch.optim import lr_scheduler as schedulers

from tests.integration import loop
from tests.integration.loop import group_of, kernels, tamiyo_of, train, wrapped
from tests.integration.optimizer_doubles import Bookkeeper, ScheduleWrapper, WarmupScheduler


@pytest.mark.parametrize("wrap_it", [False, True])
def test_a_scheduler_of_another_library_moves_kernels_too(*, wrap_it: bool) -> None:
    model = wrapped()
    optimizer = Bookkeeper(model.parameters(), lr=0.05)
    schedule = WarmupScheduler(optimizer)
    given = ScheduleWrapper(schedule) if wrap_it else schedule
    tamiyo = tamiyo_of(model, optimizer, scheduler=given)
    train(model, tamiyo, [optimizer], 8, schedule=[given])
    assert len(optimizer.param_groups) > 1
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert len(optimizer.books) >= len(optimizer.param_groups)
    assert schedule.decay_t == [30]
    assert schedule.noise_range_t == [0]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.LambdaLR(o, lambda e: 0.9**e),
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
        WarmupScheduler,
    ],
)
def test_a_forgotten_scheduler_is_noticed_and_moves_kernels(make: Callable[[Any], Any]) -> None:
    model = wrapped()
    optimizer = Bookkeeper(model.parameters(), lr=0.05)
    schedule = make(optimizer)
    with pytest.warns(
        UserWarning, match=r"Bookkeeper has a scheduler.*scheduler=scheduler"
    ) as caught:
        tamiyo = tamiyo_of(model, optimizer)
    assert caught[0].filename == loop.__file__
    train(model, tamiyo, [optimizer], 8, schedule=[schedule])
    assert len(optimizer.param_groups) > 1
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def test_a_scheduler_that_is_made_later_is_told_of_new_groups() -> None:
    model = wrapped()
    optimizer = Bookkeeper(model.parameters(), lr=0.05)
    tamiyo = tamiyo_of(model, optimizer)
    schedule = schedulers.LambdaLR(optimizer, lambda e: 0.9**e)
    train(model, tamiyo, [optimizer], 8, schedule=[schedule])
    assert len(schedule.lr_lambdas) == len(optimizer.param_groups) > 1


def by_position(groups: list[dict[str, Any]], rates: list[float]) -> None:
    for index, group in enumerate(groups):
        group["lr"] = rates[index]


def in_pairs(groups: list[dict[str, Any]], rates: list[float]) -> None:
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def one_by_one(groups: list[dict[str, Any]], rates: list[float]) -> None:
    matrices, vectors = groups
    matrices["lr"], vectors["lr"] = rates


@pytest.mark.parametrize("write", [by_position, in_pairs, one_by_one])
def test_rates_that_are_written_by_hand_are_those_of_kernels_at_every_step(
    write: Callable[[list[dict[str, Any]], list[float]], None],
) -> None:
    model = wrapped()
    parts = [[p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False)]
    groups: list[dict[str, Any]] = [{"params": part} for part in parts]
    optimizer = AdamW(groups, lr=0.01)
    tamiyo = tamiyo_of(model, optimizer)
    steps: list[int] = []

    def step(optimizer: Any, model: nn.Module, batch: Any) -> None:
        steps.append(1)
        rates = [0.01 * 0.99 ** len(steps), 0.005 * 0.98 ** len(steps)]
        write(optimizer.param_groups, rates)
        for parameter in kernels(model, "fc1") + kernels(model, "fc2"):
            rate = rates[0] if parameter.ndim > 1 else rates[1]
            assert group_of([optimizer], parameter)[1]["lr"] == rate
        optimizer.step()

    train(model, tamiyo, [optimizer], 8, step=step)
    assert {p.ndim for p in kernels(model, "fc1") + kernels(model, "fc2")} == {1, 2}


def test_a_rate_that_is_a_tensor_is_one_for_host_and_kernels() -> None:
    model = wrapped()
    rate = torch.tensor(0.01)
    optimizer = Adam(model.parameters(), lr=rate, foreach=False)
    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 6)
    rate.mul_(0.5)
    assert kernels(model, "fc1") + kernels(model, "fc2")
    for parameter in kernels(model, "fc1") + kernels(model, "fc2"):
        assert group_of([optimizer], parameter)[1]["lr"] == 0.005
