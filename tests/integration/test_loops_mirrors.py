"""Lists and dictionaries of tensors that a loop pairs with the model's parameters."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

import esper
from tests.unit.services.small_run import KEPT, SEEDS, SmallRun, host, loss_fn, settings

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


class WholeState(OfState):
    """Over a copy of the whole state dict, of which the floating-point numbers are averaged."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {n: t.clone() for n, t in model.state_dict().items()}


def test_an_average_of_the_whole_state_dict_can_be_loaded_when_the_model_has_grown() -> None:
    run = SmallRun(config=BLENDS_SOON)
    average = WholeState(run.model)
    grow_with(run, average.update)
    state = run.model.state_dict()
    assert list(average.shadow) == list(state)
    states = [name for name in state if name.endswith("_extra_state")]
    assert all(torch.equal(average.shadow[name], state[name]) for name in states)
    copy.deepcopy(run.model).load_state_dict(average.shadow)


@pytest.mark.parametrize("kind", [list, dict])
def test_anchors_of_the_loss_follow_before_the_next_kernel_is_judged(kind: type[Any]) -> None:
    """Two layers grow at once: what one is blended in with is paired while the other is judged."""
    anchors: Any = kind()

    def pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        if kind is list:
            return list(zip(model.parameters(), anchors, strict=True))
        return [(p, anchors[name]) for name, p in model.named_parameters()]

    def anchored(model: nn.Module, batch: Any) -> Tensor:
        return loss_fn(model, batch) + sum(0.01 * (p - a).square().sum() for p, a in pairs(model))

    model = esper.wrap(host(), ["fc1", "fc2"], SEEDS)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchors.update(values) if kind is dict else anchors.extend(values.values())
    run = run_over(model, anchored)
    grow_with(run, lambda _: None, 10)
    verdicts = [verdict for report in run.reports for verdict in report.verdicts]
    assert len({verdict.layer_name for verdict in verdicts if verdict.reward is not None}) == 2
    assert not [verdict.why for verdict in verdicts if verdict.reward is None]


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_a_mask_lets_new_kernels_learn(kind: torch.dtype) -> None:
    run = SmallRun(config=BLENDS_SOON)
    masks = {n: torch.ones_like(p).to(kind) for n, p in run.model.named_parameters()}
    masks["fc1.host.weight"][0, 0] = 0
    host_names = set(masks)

    @torch.no_grad()
    def prune(model: nn.Module) -> None:
        for name, p in model.named_parameters():
            p.mul_(masks[name])

    grow_with(run, prune)
    new = set(masks) - host_names
    assert new
    assert all(bool(masks[name].all()) and masks[name].dtype is kind for name in new)


def some(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.abs() > 0 for n, p in model.named_parameters() if n.startswith("fc")}


def matrices(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.ones_like(p) for n, p in model.named_parameters() if p.ndim > 1}


def flags(model: nn.Module) -> list[Tensor]:
    return [p.abs() >= 0 for p in model.parameters()]


@pytest.mark.parametrize("make", [some, matrices, flags])
@pytest.mark.parametrize("widen", ["auto", ()])
def test_masks_of_some_parameters_follow_what_is_merged_into_them(
    make: Callable[[nn.Module], Any], widen: Any
) -> None:
    now = settings(train_epochs=0, ramp=0, keep_stderrs=0.0)
    seeds = ("units_select", "units") if widen else SEEDS
    run = SmallRun(config=now, widen=widen, seeds=seeds, model=host(restless=False))
    masks = make(run.model)

    @torch.no_grad()
    def prune(model: nn.Module) -> None:
        named = dict(model.named_parameters())
        pairs = masks if isinstance(masks, dict) else dict(zip(named, masks, strict=True))
        for name, mask in pairs.items():
            named[name].mul_(mask)
            assert mask.shape == named[name].shape

    for number in range(6):
        for batch in run.train_batches():
            run.step(batch)
            prune(run.model)
        run.reports.append(run.engine.on_epoch_end(number))
    assert any(verdict.kept for report in run.reports for verdict in report.verdicts)


def test_a_saved_state_dict_of_the_plain_model_stays_what_it_is() -> None:
    model = host(restless=False)
    saved = copy.deepcopy(model.state_dict())
    shapes = {name: value.shape for name, value in saved.items()}
    run = SmallRun(
        config=settings(train_epochs=0, ramp=0), widen="auto", model=model, worth=(KEPT,)
    )
    run.run(6)
    assert {n: p.shape for n, p in run.model.named_parameters()} != shapes
    assert {name: value.shape for name, value in saved.items()} == shapes


def test_what_mirrors_nothing_and_optimizers_stay_as_they_are() -> None:
    run = SmallRun(config=BLENDS_SOON)
    best: dict[str, Tensor] = {k: v.clone() for k, v in run.model.state_dict().items()}
    others = [torch.zeros(p.shape[::-1]) for p in run.model.parameters()]
    integers = [torch.zeros(p.shape, dtype=torch.long) for p in run.model.parameters()]
    groups = [id(group["params"]) for group in run.optimizer.param_groups]
    names = list(best)
    grow_with(run, lambda _: None)
    assert list(best) == names
    assert len(others) == len(integers) == 6
    assert [id(group["params"]) for group in run.optimizer.param_groups[:1]] == groups
    run.model.load_state_dict(best)
    run.run(10, first=8)


def test_a_snapshot_by_position_can_be_put_back_when_the_model_has_grown() -> None:
    run = SmallRun(config=BLENDS_SOON)
    best = [p.detach().clone() for p in run.model.parameters()]
    before = [id(value) for value in best]
    grow_with(run, lambda _: None)
    assert [id(value) for value in best if id(value) in before] == before
    with torch.no_grad():
        for p, value in zip(run.model.parameters(), best, strict=True):
            p.copy_(value)


def test_a_batch_in_a_list_that_looks_like_one_layer_stays_a_batch() -> None:
    model = esper.wrap(nn.Sequential(OrderedDict(fc=nn.Linear(6, 6))), ["fc"], SEEDS)
    kept = [torch.randn(6, 6), torch.randn(6)]  # the shapes of a weight and its bias

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs)[:, 0], targets, reduction="none")

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    given: dict[str, Any] = {"loss_fn": loss, "config": BLENDS_SOON}
    tamiyo = esper.Tamiyo(model, optimizer, holdout=[kept] * 4, **given)
    for epoch in range(6):
        for batch in [kept, [kept[0].neg(), kept[1]]]:
            optimizer.zero_grad()
            loss(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    assert any(event.kind == "decision" for event in tamiyo.events())
    assert len(kept) == 2


class Both(nn.Module):
    """A network that trains, and a frozen copy of it: a target network, or a fixed reference."""

    def __init__(self, *, wrapped: bool) -> None:
        super().__init__()
        self.online = host(restless=False)
        if wrapped:
            esper.wrap(self.online, ["fc1"], SEEDS)
        self.target = copy.deepcopy(self.online).requires_grad_(requires_grad=False)
        if not wrapped:
            esper.wrap(self, ["online.fc1"], SEEDS)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.online(x)
        return y

    @torch.no_grad()
    def update(self, _model: nn.Module) -> None:
        for ours, theirs in zip(self.target.parameters(), self.online.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)


def run_over(model: nn.Module, loss: Callable[[Any, Any], Tensor] = loss_fn) -> SmallRun:
    """A run over a model that is wrapped already."""
    run = SmallRun(grown=False, model=model, loss_fn=loss)
    given: dict[str, Any] = {"loss_fn": run.loss_fn, "holdout": run.holdout, "config": BLENDS_SOON}
    run.tamiyo = esper.Tamiyo(model, run.optimizer, **given)
    return run


@pytest.mark.parametrize("wrapped", [False, True], ids=["copied before wrap", "after"])
@pytest.mark.parametrize("moves", [False, True])
def test_a_frozen_copy_in_the_model_follows_only_if_it_moves(*, wrapped: bool, moves: bool) -> None:
    both = Both(wrapped=wrapped)
    run = run_over(both)
    x = run.holdout[0][0]
    told = both.target(x)
    assert set(run.engine.layers) == {"online.fc1"}
    grow_with(run, both.update if moves else lambda _: None)
    same = len(list(both.target.parameters())) == len(list(both.online.parameters()))
    assert same is moves
    assert torch.equal(both.target(x), told) is not moves


def test_an_average_that_was_made_before_the_model_was_wrapped_grows_too() -> None:
    model = host()
    average = AveragedModel(model)
    run = run_over(esper.wrap(model, ["fc1"], SEEDS))
    grow_with(run, average.update_parameters)
    shapes = [p.shape for p in run.model.parameters()]
    assert [p.shape for p in average.module.parameters()] == shapes


class LateSWA:
    """Keeps a copy that is averaged from some epoch on."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = copy.deepcopy(model)


@pytest.mark.parametrize("widen", ["auto", ()])
@pytest.mark.parametrize("named", ["by its class", "by its variable", "not"])
def test_an_average_that_begins_late_grows_if_it_is_named_as_one(widen: Any, named: str) -> None:
    seeds = ("units_select", "units") if widen else SEEDS
    run = SmallRun(
        config=settings(train_epochs=0, ramp=0, keep_stderrs=0.0),
        model=host(restless=False),
        widen=widen,
        seeds=seeds,
    )
    if named == "by its class":
        holder = LateSWA(run.model)
        kept = (holder.kept,)
    elif named == "by its variable":
        swa_model = copy.deepcopy(run.model)
        kept = (swa_model,)
    else:
        kept = (copy.deepcopy(run.model),)
    run.run(6)
    same = [p.shape for p in kept[0].parameters()] == [p.shape for p in run.model.parameters()]
    assert run.engine.used > 0
    assert same is (named != "not")


def test_a_control_of_the_same_seed_and_its_average_stay_plain() -> None:
    control, model = host(), host()
    its_average = AveragedModel(control)
    names = list(control.state_dict())
    esper.wrap(model, ["fc1"], SEEDS)
    assert list(control.state_dict()) == list(its_average.module.state_dict()) == names


def test_what_the_loop_deletes_is_freed() -> None:
    torch.manual_seed(0)
    mine, held = torch.zeros(3), {"kept by the user": torch.zeros(3)}
    namespace = locals()  # the user's to keep
    run = SmallRun(model=host(), config=BLENDS_SOON).run(4)
    assert run.facts("decision")
    assert namespace["held"] is held
    del namespace
    run.run(5, first=4)
    gone = ref(mine)
    del mine
    assert gone() is None
