"""Widths that keep step: the units that each may have, and runs in which all grow by one factor."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.execution.kernel import count_parameters
from esper.execution.surgery import name_layers
from esper.tasks import TASKS
from esper.widths.evenly import even_units
from esper.widths.kasmina_width import KasminaWidth
from tests.unit.services.small_run import KEPT, SmallRun, settings


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(dim=1)


def mlp(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()),
        nn.Linear(second, 3),
    )


def widths_of(model: nn.Module, **given: Any) -> list[KasminaWidth]:
    found = name_layers(esper.wrap(model, widen="auto", **given)).values()
    return [width for width in found if isinstance(width, KasminaWidth)]


@pytest.mark.parametrize(
    ("budget", "units"),
    [
        (7, (4, 8)),
        (8, (4, 9)),  # a factor of 1.0625
        (23, (4, 9)),
        (24, (5, 9)),  # of 1.125
        (500, (14, 27)),  # of 3.4; (14, 28) would add 510
    ],
)
def test_unlike_widths_grow_by_one_factor_as_far_as_the_budget_goes(
    budget: int, units: tuple[int, int]
) -> None:
    batch = (torch.randn(4, 6), torch.randn(4, 3))
    widths = widths_of(mlp(4, 8), example=batch, loss_fn=loss_fn)
    assert tuple(even_units(widths, budget).values()) == units
    added = count_parameters(mlp(*units)) - count_parameters(mlp(4, 8))
    assert added <= budget


@pytest.mark.parametrize("name", ["mnist1d", "mnist5k", "resnet"])
def test_it_is_the_widest_host_within_the_budget(name: str) -> None:
    task = TASKS.create(name)
    example = next(iter(task.train_batches(0, 0)))
    widths = widths_of(task.host(0), example=example, loss_fn=task.loss_fn)
    size = partial(task.host, 0)
    limit = count_parameters(size()) + task.default_budget
    wider = range(task.width, 4 * task.width)
    widest = max(w for w in wider if count_parameters(size(width=w)) <= limit)
    assert even_units(widths, task.default_budget) == dict.fromkeys(
        (w.name for w in widths), widest
    )
    grown = widths[0]
    grown.resize(grown.units + 3)  # what has grown since changes nothing
    assert set(even_units(widths, task.default_budget).values()) == {widest}


@pytest.mark.trains
@pytest.mark.parametrize(("share", "rounds"), [(1.0, 1), (0.5, 2)])
def test_all_widths_of_a_run_end_at_the_same_factor(share: float, rounds: int) -> None:
    growth: dict[str, Any] = {"budget": 500, "train_epochs": 0, "ramp": 0.0, "starts": 2}
    config = settings(evenly=True, kernel_share=share, **growth)
    run = SmallRun(
        config=config, model=mlp(4, 8), widen=("auto",), loss_fn=loss_fn, worth=(KEPT,)
    ).run(8)
    widths = [w for w in run.engine.layers.values() if isinstance(w, KasminaWidth)]
    assert [width.units for width in widths] == [14, 27]
    assert count_parameters(run.model) == count_parameters(mlp(14, 27))
    begun = [len(report.decisions) for report in run.reports]
    assert [number for number in begun if number] == [2] * rounds
    assert run.reports[-1].over.startswith(
        "all widths have grown by the same factor, as far as the budget goes: 8 of 500 parameters"
    )
