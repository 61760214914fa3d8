"""Lists and dictionaries of tensors that a loop pairs with the model's parameters."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import esper
from tests.unit.services.small_run import SEEDS, SmallRun, host, settings

pytestmark = pytest.mark.trains

BLENDS_SOON = settings(train_epochs=1, keep_stderrs=0.0)


class ByName:
    """An average in a dictionary, swapped in for an evaluation, as in many a blog post."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}

    def update(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * p.data

    def values(self) -> list[Any]:
        return list(self.shadow.values())


class ByPosition(ByName):
    """An average in a list, over parameters that are listed anew each time."""

    def __init__(self, model: nn.Module) -> None:
        self.list = [p.detach().clone() for p in model.parameters()]

    @override
    def update(self, model: nn.Module) -> None:
        for average, p in zip(self.list, model.parameters(), strict=True):
            average.lerp_(p.detach(), 0.1)

    @override
    def values(self) -> list[Any]:
        return self.list


class ByHeldList(ByPosition):
    """Over parameters that were listed once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.held = list(model.parameters())

    @override
    def update(self, model: nn.Module) -> None:
        for average, p in zip(self.list, self.held, strict=True):
            average.lerp_(p.detach(), 0.1)


class ByReference(ByPosition):
    """Over weak references to parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.held = [ref(p) for p in model.parameters()]

    @override
    def update(self, model: nn.Module) -> None:
        for average, reference in zip(self.list, self.held, strict=True):
            p = reference()
            assert p is not None
            average.lerp_(p.detach(), 0.1)


class OfState(ByName):
    """Over all of the state dict that is a floating-point number."""

    def __init__(self, model: nn.Module) -> None:
        state = model.state_dict()
        self.shadow = {n: t.clone() for n, t in state.items() if t.is_floating_point()}

    @override
    def update(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].mul_(0.9).add_(value, alpha=0.1)


def grow_with(run: SmallRun, update: Callable[[nn.Module], None], epochs: int = 8) -> None:
    for number in range(epochs):
        for batch in run.train_batches():
            run.step(batch)
            update(run.model)
        report = run.engine.on_epoch_end(number)
        run.reports.append(report)
    assert {step.new for r in run.reports for step in r.steps} >= {"training", "blending"}


@pytest.mark.parametrize("make", [ByName, ByPosition, ByHeldList, ByReference])
def test_an_average_in_a_plain_container_grows_with_the_model(make: type[ByName]) -> None:
    run = SmallRun(config=BLENDS_SOON)
    average = make(run.model)
    grow_with(run, average.update)
    shapes = [p.shape for p in run.model.parameters()]
    assert sorted(v.shape for v in average.values()) == sorted(shapes)
    if make is not ByName:
        assert [v.shape for v in average.values()] == shapes
    assert len({v.data_ptr() for v in average.values()} & set(addresses(run))) == 0
    assert all(bool(v.any()) for v in average.values())


def addresses(run: SmallRun) -> list[int]:
    return [p.data_ptr() for p in run.model.parameters()]


def test_an_average_of_the_state_dict_grows_when_a_kernel_germinates() -> None:
    run = SmallRun(config=BLENDS_SOON)
    average = OfState(run.model)
    grow_with(run, average.update)
    state = run.model.state_dict()
    floats = {name: t for name, t in state.items() if t.is_floating_point()}
    assert average.shadow.keys() == floats.keys()
    assert all(average.shadow[name].shape == t.shape for name, t in floats.items())


def test_an_importance_of_weights_is_zero_for_a_new_kernel() -> None:
    run = SmallRun(config=BLENDS_SOON)
    importance = {n: torch.rand_like(p).square() for n, p in run.model.named_parameters()}
    old = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    host = set(importance)

    def penalty(model: nn.Module) -> None:
        total = torch.zeros(())
        for name, p in model.named_parameters():
            total = total + (importance[name] * (p - old[name]).square()).sum()
        assert bool(total.isfinite())

    grow_with(run, penalty)
    new = set(importance) - host
    assert new
    assert not any(bool(importance[name].any()) for name in new)
    assert all(bool(old[name].any()) for name in new)


def test_what_mirrors_nothing_and_optimizers_stay_as_they_are() -> None:
    run = SmallRun(config=BLENDS_SOON)
    best: dict[str, Tensor] = {k: v.clone() for k, v in run.model.state_dict().items()}
    others = [torch.zeros(p.shape[::-1]) for p in run.model.parameters()]
    snapshot = [p.detach().clone() for p in run.model.parameters()]
    before = list(snapshot)
    groups = [id(group["params"]) for group in run.optimizer.param_groups]
    names = list(best)
    grow_with(run, lambda _: None)
    assert list(best) == names
    assert len(others) == 6
    assert [id(t) for t in snapshot] == list(map(id, before))
    assert [id(group["params"]) for group in run.optimizer.param_groups[:1]] == groups
    run.model.load_state_dict(best)
    run.run(10, first=8)


def test_a_target_network_inside_the_model_follows_and_is_no_layer_to_grow() -> None:
    online = esper.wrap(host(), ["fc1"], SEEDS)
    task = nn.Module()
    task.online = online
    target = copy.deepcopy(online).requires_grad_(requires_grad=False)
    task.target = target
    task.forward = online.forward
    run = SmallRun(grown=False, model=task)
    run.tamiyo = esper.Tamiyo(
        task, run.optimizer, loss_fn=run.loss_fn, holdout=run.holdout, config=BLENDS_SOON
    )
    assert set(run.engine.layers) == {"online.fc1"}
    for number in range(6):
        run.run(number + 1, first=number)
        for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
            ours.data.lerp_(theirs.data, 0.1)
