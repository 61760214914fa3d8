"""A user's own loop over a small network, with any optimizers; what grew, and in which group."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import esper
from esper.services.tamiyo.report import EpochReport
from tests.unit.services.small_run import LAYERS, SEEDS, batches, host, loss_fn, settings
from tests.unit.services.small_run import teacher as examples

KEEP_ALL = settings(keep_stderrs=0.0, train_epochs=1, budget=2000)
HOLDOUT = batches(examples(96, seed=2))
TRAIN = batches(examples(320, seed=1))


def wrapped(model: nn.Module | None = None) -> nn.Module:
    return esper.wrap(host() if model is None else model, list(LAYERS), SEEDS)


def tamiyo_of(model: nn.Module, optimizer: Any, **options: Any) -> esper.Tamiyo:
    given = {"loss_fn": loss_fn, "holdout": HOLDOUT, "config": KEEP_ALL, **options}
    return esper.Tamiyo(model, optimizer, **given)


def watched(optimizer: Any, model: nn.Module, batch: Any) -> None:
    """A plain step, in a run whose grafts may fail."""
    optimizer.step()


def train(
    model: nn.Module,
    tamiyo: esper.Tamiyo,
    optimizers: Sequence[Any],
    epochs: int,
    *,
    first: int = 0,
    schedule: Sequence[Any] = (),
    step: Callable[[Any, nn.Module, Any], None] | None = None,
) -> list[EpochReport]:
    reports = []
    for epoch in range(first, epochs):
        model.train()
        for batch in TRAIN:
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.autograd.backward(loss_fn(model, batch).mean())
            for optimizer in optimizers:
                if step is None:
                    optimizer.step()
                else:
                    step(optimizer, model, batch)
            tamiyo.on_batch_end(batch)
        reports.append(tamiyo.on_epoch_end(epoch))
        for one in schedule:
            one.step()
    assert step is watched or [v.why for r in reports for v in r.verdicts if v.reward is None] == []
    return reports


def kernels(model: nn.Module, layer: str) -> list[nn.Parameter]:
    """Parameters of a layer's kernels that are blended in or absorbed."""
    found = esper_layer(model, layer)
    return [p for one in found.contributions() for p in one.kernel.parameters()]


def esper_layer(model: nn.Module, layer: str) -> Any:
    return model.get_submodule(layer)


def group_of(optimizers: Sequence[Any], parameter: nn.Parameter) -> tuple[Any, dict[str, Any]]:
    (found,) = [
        (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    ]
    return found
