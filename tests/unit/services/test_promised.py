"""What gradients promise of frozen layers, and where a run makes use of it."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import Adam

import esper
from esper.contracts.errors import KernelError, MeasurementError
from esper.execution.seeded import Seeded
from esper.services.tamiyo.growth.progress import Progress
from esper.services.tamiyo.growth.promised import relative
from esper.services.tamiyo.policies.base import Promises
from tests.unit.services.small_run import batches, loss_fn, teacher

SETTINGS = {
    "policy": "learned",
    "growth": {
        "budget": 200,
        "kernel_budget": 40,
        "warmup_epochs": 1,
        "train_epochs": 1,
        "blend_epochs": 1,
        "plateau_threshold": 1.0,
    },
}


def _layers(**frozen: bool) -> dict[str, Seeded]:
    return {name: cast("Seeded", SimpleNamespace(frozen=yes)) for name, yes in frozen.items()}


def _found() -> Promises:
    return {"a": {"lora": (6.0, 1.0), "glu": (2.0,)}, "b": {"lora": (4.0,), "gate": ()}}


def _fails() -> Promises:
    raise KernelError("the losses have no gradients")


def _is_nan() -> Promises:
    raise MeasurementError("the gradient at layer 'a' is not finite")


def test_promises_are_those_of_the_smallest_kernels_relative_to_their_mean() -> None:
    found = relative(_found, _layers(a=True, b=True))
    assert found == {"a": {"lora": 1.5, "glu": 0.5}, "b": {"lora": 1.0}}


def test_layers_that_train_promise_nothing() -> None:
    assert relative(_found, _layers(a=True, b=False)) == {"a": {"lora": 1.5, "glu": 0.5}}
    assert relative(_found, _layers(a=False, b=False)) == {}


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_pass_that_says_nothing_promises_nothing(value: float) -> None:
    assert relative(lambda: {"a": {"lora": (value,)}}, _layers(a=True)) == {}
    assert relative(_fails, _layers(a=True)) == {}
    assert relative(_is_nan, _layers(a=True)) == {}


def test_more_batches_are_kept_where_their_gradients_are_read() -> None:
    for needed, kept in ((False, 1), (True, 8)):
        progress = Progress(keeps_statistics=False, keeps_batches=needed)
        for batch in range(20):
            progress.on_batch(batch)
        assert len(progress.recent) == kept
        assert progress.calibration == []


def _run(*, frozen: bool, policy: str = "learned", epochs: int = 4) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    names = ("fc1", "fc2", "head")
    layers = [nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
    model = nn.Sequential(OrderedDict(zip(("fc1", "t1", "fc2", "t2", "head"), layers, strict=True)))
    for name in names[:2]:
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(not frozen)
    model = esper.wrap(model, layers=list(names[:2]), seeds=["lora", "bottleneck", "gate"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adam(trained, lr=1e-2)
    tamiyo = esper.Tamiyo(
        model,
        optimizer,
        loss_fn=loss_fn,
        holdout=batches(teacher(96, seed=1)),
        config={**SETTINGS, "policy": policy},
    )
    for epoch in range(epochs):
        for batch in batches(teacher(192, seed=2)):
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    tamiyo.finish()
    decisions = [dict(event.data) for event in tamiyo.events() if event.kind == "decision"]
    tamiyo.close()
    return decisions


def test_a_run_over_a_frozen_host_chooses_by_gradients_and_writes_down_what_they_promised() -> None:
    decisions = _run(frozen=True)
    assert decisions
    assert all(decision["promise"] > 0 for decision in decisions)
    assert decisions == _run(frozen=True)


@pytest.mark.parametrize(("frozen", "policy"), [(False, "learned"), (True, "heuristic")])
def test_elsewhere_nothing_is_promised(*, frozen: bool, policy: str) -> None:
    decisions = _run(frozen=frozen, policy=policy)
    assert decisions
    assert not any("promise" in decision for decision in decisions)
