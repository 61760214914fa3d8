from dataclasses import astuple

import pytest
import torch
from torch import nn

from esper.contracts.errors import ConfigError
from esper.tasks import TASKS
from esper.tasks.base import Batches


def test_batches_end_with_what_is_left() -> None:
    part = (torch.arange(5.0)[:, None], torch.tensor([0, 1, 0, 1, 0]))
    batches = Batches(part, 2, order=torch.tensor([4, 0, 3, 1, 2]))
    assert len(batches) == 3
    assert [x.flatten().tolist() for x, _ in batches] == [[4, 0], [3, 1], [2]]
    assert [y.tolist() for _, y in batches] == [[0, 0], [1, 1], [0]]


def test_loss_and_accuracy_by_hand() -> None:
    task = TASKS.create("letter")
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    batch = (scores, torch.tensor([0, 1]))
    losses = task.loss_fn(nn.Identity(), batch)
    torch.testing.assert_close(losses, torch.tensor([0.5, 0.25]).log().neg())
    assert task.accuracy_fn(nn.Identity(), batch).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "parameters"), [("letter", 442), ("digits", 350), ("mnist1d", 738), ("mnist5k", 534)]
)
def test_hosts_are_small(name: str, parameters: int) -> None:
    host = TASKS.create(name).host(0)
    assert sum(p.numel() for p in host.parameters()) == parameters


def test_weights_are_those_of_torchs_own_seed() -> None:
    task = TASKS.create("letter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = task.build_host(task.width)
    for a, b in zip(task.host(5).parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_are_not_optimised() -> None:
    task = TASKS.create("letter")
    host = task.host(0)
    host.get_submodule("fc1").requires_grad_(requires_grad=False)
    (group,) = task.optimizer(host).param_groups
    assert len(group["params"]) == 4


def test_a_host_without_units_is_refused() -> None:
    with pytest.raises(ConfigError, match="width of a digits host is 0; it must be >= 1"):
        TASKS.create("digits").host(0, width=0)


@pytest.mark.parametrize(("epoch", "seed", "named"), [(-1, 0, "epoch"), (0, -2, "seed")])
def test_a_negative_epoch_or_seed_is_refused(epoch: int, seed: int, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} of the training batches is -"):
        TASKS.create("digits").train_batches(epoch, seed)


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'letter'"):
        TASKS.create("leter")


def test_growth_can_begin_in_a_block_of_layers() -> None:
    task = TASKS.create("digits")
    assert isinstance(task.host(0).get_submodule("block"), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("letter", (12016, 3996, 3988), (16,)),
        ("digits", (1083, 359, 355), (64,)),
        ("mnist1d", (3000, 1000, 1000), (1, 40)),
        ("mnist5k", (3000, 1000, 1000), (1, 28, 28)),
        ("kjv", (6365, 2121, 2121), (64,)),
        ("transfer", (240, 240, 355), (1, 28, 28)),
        ("transfer_far", (240, 240, 1000), (1, 28, 28)),
    ],
)
def test_parts_have_the_documented_sizes(
    name: str, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    parts = astuple(TASKS.create(name).load())
    assert tuple(len(targets) for _, targets in parts) == sizes
    assert all(inputs.shape[1:] == shape for inputs, _ in parts)
