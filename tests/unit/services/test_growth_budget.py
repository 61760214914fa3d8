"""The default budget follows the host; one that is too small says so before training."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import esper
from esper.contracts.seeds import SeedState
from esper.execution.kernel import Kernel, Recipe
from tests.unit.services import small_run
from tests.unit.services.small_run import SmallRun

Batch = tuple[torch.Tensor, torch.Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(dim=1)


def net(width: int) -> nn.Sequential:
    """Its parameters: (6 w + w) + (3 w + 3)."""
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def tamiyo(model: nn.Module, seeds: Any = ("lowrank", "glu"), **growth: Any) -> esper.Tamiyo:
    if not any(isinstance(module, esper.KasminaLayer) for module in model.modules()):
        esper.wrap(model, ["0", "2"], list(seeds))
    holdout = small_run.batches(small_run.teacher(64, seed=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"growth": growth}
    return esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=holdout, config=config)


def test_a_small_host_gets_the_least_budget() -> None:
    run = tamiyo(net(10))
    assert run.budget == run.config.growth.budget == 2000


def test_a_large_host_may_double() -> None:
    assert tamiyo(net(500)).budget == 500 * 10 + 3


def test_the_share_is_a_setting() -> None:
    assert tamiyo(net(500), budget_share=0.5).budget == 2502  # 2501.5, to the nearest even number
    assert tamiyo(net(500), budget_share=0.1).budget == 2000


def test_a_budget_that_is_given_stays() -> None:
    assert tamiyo(net(500), budget=70, budget_share=2.0).budget == 70
    assert tamiyo(net(500), budget=0).budget == 0


def test_what_is_frozen_counts_only_if_almost_nothing_else_is_there() -> None:
    partly = net(500)
    partly[0].requires_grad_(False)
    assert tamiyo(partly, budget_share=10.0).budget == 10 * 1503
    wholly = net(500).requires_grad_(False)
    wholly[2].bias.requires_grad_(True)
    assert tamiyo(wholly).budget == 5003


def test_kernels_are_no_part_of_the_host() -> None:
    """As of a model that was loaded before its engine was made."""
    model = net(500)
    first = tamiyo(model)
    layer = first.layers["0"]
    for seed_idx in (0, 1):
        assert layer.spec is not None
        recipe = Recipe(blueprint="lowrank", spec=layer.spec, budget=3000, seed=0)
        layer.load_kernel(seed_idx, Kernel(module=recipe.build(), kernel_id=f"k{seed_idx}"))
        layer.advance(seed_idx, SeedState.TRAINING)
        layer.advance(seed_idx, SeedState.BLENDING)
    layer.advance(1, SeedState.HOLDING)
    layer.advance(1, SeedState.FOSSILIZED)
    assert layer.grown_parameters > 0
    first.finish()
    assert tamiyo(model).budget == first.budget


def test_reports_and_events_have_the_budget() -> None:
    run = SmallRun(config=small_run.settings(budget=None))
    report = run.epoch(0)
    assert report is not None
    assert report.budget == run.engine.budget == 2000
    assert [event["budget"] for event in run.facts("epoch")] == [2000]


def warnings_of(caplog: pytest.LogCaptureFixture, **given: Any) -> list[str]:
    with caplog.at_level(logging.WARNING):
        tamiyo(net(500), **given)
    return [record.getMessage() for record in caplog.records if "parameters" in record.getMessage()]


def test_a_layer_that_the_budget_leaves_out_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Low rank 1 beside 6 -> 500 has 506 parameters, beside 500 -> 3 it has 503."""
    assert warnings_of(caplog, budget=504, seeds=["lowrank"]) == [
        "layer 0 cannot grow: its smallest kernel, lowrank, has 506 parameters, and growth.budget "
        "is 504; raise it to 506 at least"
    ]


def test_a_budget_for_no_layer_names_the_smallest_kernel(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, budget=2000, kernel_budget=500, seeds=["lowrank"]) == [
        "growth.kernel_budget is 500 parameters: too few for any layer to grow",
        "layer 2 cannot grow: its smallest kernel, lowrank, has 503 parameters, and "
        "growth.kernel_budget is 500; raise it to 503 at least",
    ]


def test_a_budget_for_every_layer_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(caplog, seeds=["lowrank"])
