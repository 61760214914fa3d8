"""What counts as ill, and that what is put back is all that there was."""

from math import inf, nan

import pytest
import torch
from torch import nn

from esper.services.tamiyo.growth.governor import Governor
from tests.unit.services.small_run import SmallRun, same


def a_governor(loss: float, *, factor: float = 3.0) -> Governor:
    model = nn.Linear(2, 2)
    governor = Governor(model, torch.optim.Adam(model.parameters()), divergence_factor=factor)
    governor.keep(loss, epoch=4)
    return governor


@pytest.mark.parametrize(
    ("healthy", "loss", "ill"),
    [
        (1.0, nan, True),
        (1.0, inf, True),
        (1.0, 3.1, True),
        (1.0, 2.9, False),
        (1.0, 0.1, False),
        (-1.0, -0.9, False),  # a log-likelihood; a third of its size is no catastrophe
        (-1.0, 1.1, True),
        (0.0, 0.1, False),  # nothing to compare with
    ],
)
def test_an_ill_loss_is_told_from_a_healthy_one(healthy: float, loss: float, ill: bool) -> None:
    assert bool(a_governor(healthy).objection(loss)) is ill


def test_without_a_kept_state_nothing_is_ill() -> None:
    governor = a_governor(1.0)
    governor.let_go()
    assert governor.objection(nan) == ""


def test_weights_buffers_and_optimizer_state_come_back_in_place() -> None:
    run = SmallRun(grown=False).run(2)
    governor = Governor(run.model, run.optimizer, divergence_factor=3.0)
    places = [id(p) for p in run.model.parameters()]
    governor.keep(1.0, epoch=1)
    before = run.state()
    run.run(4, first=2)
    assert not same(run.state()["tensors"], before["tensors"])
    governor.restore()
    after = run.state()
    assert same(after["tensors"], before["tensors"])
    assert same(after["optimizer"], before["optimizer"])
    assert [id(p) for p in run.model.parameters()] == places


def test_state_that_came_later_is_dropped() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    governor = Governor(model, optimizer, divergence_factor=3.0)
    governor.keep(1.0, epoch=0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.state
    governor.restore()
    assert not optimizer.state
