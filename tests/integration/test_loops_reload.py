"""States that are loaded in mid-run: of models, optimizers and schedulers, in any order."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

from esper.contracts.errors import ConfigError
from esper.execution.training.optimizers import kernels_in
from tests.unit.services.small_run import SmallRun, settings

BLENDS_SOON = settings(train_epochs=1, keep_stderrs=0.0)


def kernels(run: SmallRun) -> list[Any]:
    layers = run.engine.layers.values()
    return [p for layer in layers for c in layer.contributions() for p in c.kernel.parameters()]


def check_trained(run: SmallRun) -> None:
    """The optimizer holds every parameter of the model once, and nothing else."""
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in run.model.parameters())


def states(run: SmallRun) -> list[Any]:
    parts = [run.model, run.optimizer, *([run.scheduler] if run.scheduler else [])]
    return [copy.deepcopy(part.state_dict()) for part in parts]


@pytest.mark.trains
@pytest.mark.parametrize("saved", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("model_first", [True, False])
def test_the_best_epoch_is_restored_with_its_optimizer(saved: int, *, model_first: bool) -> None:
    run = SmallRun(config=BLENDS_SOON).run(saved)
    model, optimizer = states(run)
    # A tuple, because a list that mirrors the parameters would grow with them.
    momenta = tuple(s["exp_avg"].clone() for s in optimizer["state"].values())
    grown = len(kernels(run))
    run.run(8, first=saved)
    if model_first:
        run.model.load_state_dict(model)
    run.optimizer.load_state_dict(optimizer)
    if not model_first:
        run.model.load_state_dict(model)
        run.engine.reloads.link()
    assert len(kernels(run)) == grown
    check_trained(run)
    found = [run.optimizer.state.get(p, {}) for p in _in_order(run)]
    if model_first:  # whatever the kernels were, every momentum is back with its parameter
        assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(momenta, found, strict=True))
    run.run(11, first=8)
    check_trained(run)


def _in_order(run: SmallRun) -> list[Any]:
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def cosine(optimizer: Any) -> Any:
    return CosineAnnealingLR(optimizer, 30)


def in_sequence(optimizer: Any) -> Any:
    parts = [LambdaLR(optimizer, lambda step: 0.5 + step / 10), CosineAnnealingLR(optimizer, 30)]
    return SequentialLR(optimizer, parts, milestones=[3])


@pytest.mark.trains
@pytest.mark.parametrize("make", [cosine, in_sequence])
@pytest.mark.parametrize("saved", [1, 4])
def test_a_scheduler_that_is_restored_goes_on_for_every_group(
    make: Callable[[Any], Any], saved: int
) -> None:
    run = SmallRun(config=BLENDS_SOON, make_scheduler=make).run(saved)
    kept = states(run)
    run.run(7, first=saved)
    parts = (run.model, run.optimizer, run.scheduler)
    for part, state in zip(parts, kept, strict=True):
        part.load_state_dict(state)
    for number in range(7, 11):
        run.run(number + 1, first=number)
        assert len({group["lr"] for group in run.optimizer.param_groups}) == 1
        assert len(run.scheduler.get_last_lr()) == len(run.optimizer.param_groups)


@pytest.mark.trains
def test_a_state_of_other_groups_of_the_users_is_refused_by_pytorch() -> None:
    run = SmallRun(config=BLENDS_SOON).run(6)
    other = SGD(run.model.get_submodule("fc1").parameters(), 0.1).state_dict()
    with pytest.raises(ValueError, match="loaded state dict"):
        run.optimizer.load_state_dict(other)
    check_trained(run)


@pytest.mark.trains
def test_a_run_is_taken_back_to_an_earlier_epoch() -> None:
    run = SmallRun(config=BLENDS_SOON).run(3)
    kept = [*states(run), copy.deepcopy(run.engine.state_dict())]
    drawn = torch.get_rng_state()
    run.run(8, first=3)
    first = run.losses[-30:]
    run.model.load_state_dict(kept[0])
    run.engine.load_state_dict(kept[2])
    run.optimizer.load_state_dict(kept[1])
    torch.set_rng_state(drawn)
    run.run(8, first=3)
    assert run.losses[-30:] == first
    check_trained(run)


@pytest.mark.trains
@pytest.mark.parametrize("order", ["mto", "mot", "mo"])
def test_states_are_loaded_into_a_fresh_run_in_any_order(order: str) -> None:
    run = SmallRun(config=BLENDS_SOON).run(5)
    kept = dict(zip("mo", states(run), strict=True)) | {"t": copy.deepcopy(run.engine.state_dict())}
    drawn = torch.get_rng_state()
    run.run(8, first=5)
    fresh = SmallRun(config=BLENDS_SOON)
    parts: dict[str, Any] = {"m": fresh.model, "o": fresh.optimizer, "t": fresh.engine}
    for part in order:
        parts[part].load_state_dict(kept[part])
    torch.set_rng_state(drawn)
    fresh.run(8, first=5)
    check_trained(fresh)
    if "t" in order:
        assert fresh.losses == run.losses[-18:]


@pytest.mark.trains
@pytest.mark.parametrize("epochs", [2, 5])
def test_a_state_of_a_model_that_is_not_restored_yet_is_refused(epochs: int) -> None:
    run = SmallRun(config=BLENDS_SOON).run(epochs)
    kept = [*states(run), copy.deepcopy(run.engine.state_dict())]
    drawn = torch.get_rng_state()
    run.run(8, first=epochs)
    fresh = SmallRun(config=BLENDS_SOON)
    for _ in range(2):
        with pytest.raises(ConfigError, match="load the model's state dict before Tamiyo's"):
            fresh.engine.load_state_dict(kept[2])
    fresh.model.load_state_dict(kept[0])
    fresh.engine.load_state_dict(kept[2])
    fresh.optimizer.load_state_dict(kept[1])
    torch.set_rng_state(drawn)
    fresh.run(8, first=epochs)
    assert fresh.losses == run.losses[-len(fresh.losses) :]


@pytest.mark.trains
@pytest.mark.parametrize("epochs", [2, 4, 7])
def test_kernels_stay_the_optimizers_when_a_state_dict_is_assigned(epochs: int) -> None:
    run = SmallRun(config=BLENDS_SOON, make_optimizer=lambda m: Adam(m.parameters(), 0.02))
    run.run(epochs)
    before = kernels(run)
    isolated = [graft.kernel.module for graft in run.engine.grafts.grafts]
    inside = [p for module in isolated for p in module.parameters()]
    state = {k: v + 1 if v.is_floating_point() else v for k, v in run.model.state_dict().items()}
    run.model.load_state_dict(state, assign=True)
    assert all(a is b for a, b in zip(before, kernels(run), strict=True))
    assert all(
        a is b for a, b in zip(inside, (p for m in isolated for p in m.parameters()), strict=True)
    )
    now = run.model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in state.items())
    held = [p for group in run.optimizer.param_groups for _, p in kernels_in(group)]
    assert {id(p) for p in held} == set(map(id, before))
