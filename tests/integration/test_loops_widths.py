"""Loops whose model grows in its widths: optimizers, averages, states, and what goes wrong."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adafactor, Adagrad, AdamW, Muon, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

import esper
from esper.execution import checkpoint
from esper.widths.kasmina_width import KasminaWidth
from tests.integration.optimizer_doubles import Bookkeeper, SharpnessAware, SlowWeights
from tests.integration.test_loops_mirrors import (
    ByHeldList,
    ByName,
    ByPosition,
    ByReference,
    OfState,
    grow_with,
)
from tests.unit.services.small_run import (
    CULLED,
    KEPT,
    SmallRun,
    batches,
    loss_fn,
    settings,
    teacher,
)
from tests.unit.widths.grown import widths

pytestmark = pytest.mark.trains

GROWS = settings(train_epochs=1, blend_epochs=1, budget=150, constraints={"min_dormant_epochs": 0})


def host(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = {"fc1": nn.Linear(6, 4), "norm": nn.BatchNorm1d(4), "act": nn.ReLU()}
        further = {"fc2": nn.Linear(4, 4), "act2": nn.ReLU(), "fc3": nn.Linear(4, 3)}
        return nn.Sequential(OrderedDict(**layers, **further)).to(dtype)


def wide(**given: Any) -> SmallRun:
    """A run that grows in its two widths, and keeps all kernels."""
    settings = {"model": host(), "config": GROWS, "widen": "auto", "worth": (KEPT,), **given}
    return SmallRun(**settings)


def check_trained(run: SmallRun) -> None:
    """The optimizer holds every parameter of the model once, with state of its shape."""
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, run.model.parameters()))
    for parameter, state in run.optimizer.state.items():
        shapes = {v.shape for v in state.values() if isinstance(v, Tensor) and v.numel() > 1}
        assert shapes <= {parameter.shape}
        assert any(parameter is p for p in held)


def size(run: SmallRun) -> int:
    return sum(p.numel() for p in run.model.parameters())


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": lambda m: AdamW(m.parameters(), lr=0.01),
    "fused": lambda m: AdamW(m.parameters(), lr=0.01, fused=True),
    "foreach": lambda m: AdamW(m.parameters(), lr=0.01, foreach=True, amsgrad=True),
    "SGD": lambda m: SGD(m.parameters(), lr=0.01, momentum=0.9),
    "Adagrad": lambda m: Adagrad(m.parameters(), lr=0.01),
    "RMSprop": lambda m: RMSprop(m.parameters(), lr=0.01, momentum=0.9),
    "NAdam": lambda m: NAdam(m.parameters()),
    "Adadelta": lambda m: Adadelta(m.parameters()),
    "by decay": lambda m: AdamW(
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    ),
    "by layer": lambda m: AdamW(
        [
            {"params": list(layer.parameters()), "lr": 0.001 * index}
            for index, layer in enumerate(m.children(), 1)
            if list(layer.parameters())
        ]
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_grows_in_its_widths(name: str) -> None:
    run = wide(make_optimizer=OPTIMIZERS[name])
    born, held = size(run), dict(run.model.named_parameters())
    groups = [set(map(id, group["params"])) for group in run.optimizer.param_groups]
    for epoch in range(10):
        run.epoch(epoch)
        check_trained(run)
        assert size(run) - born <= run.engine.used <= run.engine.budget
    kept = [v for report in run.reports for v in report.verdicts if v.kept]
    assert len(kept) >= 4
    assert all(n in dict(run.model.named_parameters()) for n in held)
    assert all(dict(run.model.named_parameters())[n] is p for n, p in held.items())
    run.engine.finish()
    assert size(run) - born == run.engine.used > 0
    after = [set(map(id, group["params"])) for group in run.optimizer.param_groups]
    assert after == groups


def test_matrices_and_vectors_have_optimizers_of_their_own() -> None:
    class Both(list[Any]):
        def zero_grad(self) -> None:
            for one in self:
                one.zero_grad()

        def step(self) -> None:
            for one in self:
                one.step()

    def make(m: nn.Module) -> Any:
        matrices, vectors = (
            [p for p in m.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False)
        )
        return Both([Muon(matrices, lr=0.01), AdamW(vectors, lr=0.01)])

    run = wide(make_optimizer=make).run(8)
    assert {w.units for w in widths(run.model)} != {4}
    for one in run.optimizer:  # type: ignore[attr-defined]
        held = [p for group in one.param_groups for p in group["params"]]
        assert {p.ndim for p in held} == ({2} if isinstance(one, Muon) else {1})
        assert all(v.shape in (p.shape, ()) for p, s in one.state.items() for v in s.values())


class Sharp(SharpnessAware):
    """One call for both steps, by the same gradient."""

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first_step()
        self.second_step()


def schedule_free(model: nn.Module) -> Any:
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    return optimizer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda m: Adafactor(m.parameters(), lr=0.01), "Adafactor has state that cannot be"),
        (lambda m: Sharp(m.parameters(), SGD, lr=0.02, momentum=0.9), "cannot be widened, 'old'"),
        (lambda m: SlowWeights(SGD(m.parameters(), lr=0.02)), "groups of their own"),
        (lambda m: Bookkeeper(m.parameters()), "Bookkeeper keeps parameter groups of their own"),
        (schedule_free, "AdamWScheduleFree keeps parameter groups of their own"),
    ],
    ids=["factored", "SAM", "Lookahead", "ZeRO", "schedule-free"],
)
def test_what_cannot_be_merged_goes_on_training(
    make: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = wide(make_optimizer=make).run(8)
    assert any(v.kept for report in run.reports for v in report.verdicts)
    assert {w.units for w in widths(run.model)} == {4}
    assert any(w.is_grown for w in widths(run.model))
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in run.model.parameters())
    kept = [p.detach().clone() for w in widths(run.model) for p in w.fossils.parameters()]
    run.run(9, first=8)
    now = [p for w in widths(run.model) for p in w.fossils.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(kept, now, strict=False))  # some are silent
    told = [m for m in caplog.messages if "stay parameters of their own" in m]
    assert len(told) == len(set(told)) > 0
    assert all(why in sentence for sentence in told)


@pytest.mark.parametrize("start", [1, 2, 3, 4, 5])
def test_a_new_optimizer_in_mid_run_has_state_of_the_merged_shapes(start: int) -> None:
    run = wide(config=settings(train_epochs=0, ramp=0, budget=400))
    for number in range(8):
        if number == start:
            run.optimizer = AdamW(run.model.parameters(), lr=0.01)
        run.epoch(number)
    assert sum(verdict.kept for report in run.reports for verdict in report.verdicts) > 2
    check_trained(run)


class ReadsMore(nn.Module):
    """Reads a hidden layer in one more place from some epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)
        self.bank, self.more = torch.ones(4), False

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        y: Tensor = self.b(h)
        return y + (h * self.bank).sum(1, keepdim=True) if self.more else y


def test_a_kernel_whose_first_pass_fails_is_not_blended_in() -> None:
    run = wide(model=ReadsMore(), config=settings(train_epochs=0, ramp=0, warmup_epochs=2))
    for number in range(5):
        run.model.more = number >= 1  # type: ignore[assignment]
        run.epoch(number)
    steps = [step for report in run.reports for step in report.steps]
    assert {step.new for step in steps} <= {"culled", "dormant"}
    assert any("first values failed" in step.why for step in steps)
    assert run.engine.used == 0


def test_a_budget_holds_what_crosses() -> None:
    """Kernels of two neighbours at once, whose rows and columns cross in the layer between them."""
    run = wide(config=settings(train_epochs=1, budget=77, kernel_budget=40))
    for epoch in range(14):
        run.epoch(epoch)
        assert run.engine.used <= 77
    born = size(wide())
    run.engine.finish()
    assert run.engine.used == size(run) - born > 40


# --- averages and lists that the loop keeps -------------------------------------------------------


@pytest.mark.parametrize("make", [ByName, ByPosition, ByHeldList, ByReference])
def test_averages_in_containers(make: type[ByName]) -> None:
    run = wide()
    average: Any = make(run.model)

    def update(model: nn.Module) -> None:
        if make in (ByHeldList, ByReference):
            average.held = [p if make is ByHeldList else ref(p) for p in model.parameters()]
        average.update(model)

    grow_with(run, update, epochs=10)
    assert {w.units for w in widths(run.model)} != {4}
    shapes = [p.shape for p in run.model.parameters()]
    assert sorted(v.shape for v in average.values()) == sorted(shapes)


def test_lists_that_were_made_once() -> None:
    run = wide()
    held, average = list(run.model.parameters()), ByHeldList(run.model)

    def update(model: nn.Module) -> None:
        average.update(model)
        nn.utils.clip_grad_norm_(held, 1.0)

    grow_with(run, update, epochs=10)
    assert list(map(id, held)) == [id(p) for p in run.model.parameters()]
    assert [v.shape for v in average.values()] == [p.shape for p in held]


def test_an_average_of_the_state() -> None:
    run = wide()
    average = OfState(run.model)
    grow_with(run, average.update, epochs=10)
    state = run.model.state_dict()
    floats = {name: t for name, t in state.items() if t.is_floating_point()}
    assert {n: t.shape for n, t in average.shadow.items()} == {
        n: t.shape for n, t in floats.items()
    }


class Last:
    """An average over one value, which a merge must leave equal to the parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            self.shadow[name].copy_(p.detach())


@pytest.mark.parametrize("kind", ["dictionary", "averaged model"])
def test_values_are_merged_as_the_parameters_are(kind: str) -> None:
    run = wide()
    model = run.model
    plain = Last(model)
    averaged = AveragedModel(model, avg_fn=lambda _, p, __: p.clone())
    for epoch in range(10):
        for batch in run.train_batches():
            run.step(batch)
            plain.update(model)
            averaged.update_parameters(model)
        run.reports.append(run.engine.on_epoch_end(epoch))
        values = plain.shadow if kind == "dictionary" else dict(averaged.module.named_parameters())
        assert values.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(values[n], p) for n, p in model.named_parameters())
    assert {w.units for w in widths(model)} != {4}


def test_snapshots_stay_what_they_are() -> None:
    run = wide().run(4)
    snapshot = copy.deepcopy(run.model)
    values = {n: t.clone() for n, t in snapshot.state_dict().items()}
    x = run.holdout[0][0]
    before = snapshot.eval()(x).detach().clone()
    run.run(10, first=4)
    assert torch.equal(snapshot(x), before)
    assert all(torch.equal(values[n], t) for n, t in snapshot.state_dict().items())
    assert [w.units for w in widths(snapshot)] != [w.units for w in widths(run.model)]


def test_an_average_from_before_the_model_was_wrapped() -> None:
    model = host(seed=31)  # unlike any other that is alive, which could be a control of this one
    averaged = AveragedModel(model, avg_fn=lambda _, p, __: p.clone())
    run = wide(model=model)
    for epoch in range(9):
        for batch in run.train_batches():
            run.step(batch)
            averaged.update_parameters(model)
        run.engine.on_epoch_end(epoch)
    assert {w.units for w in widths(model)} != {4}
    values = dict(averaged.module.named_parameters())
    assert all(torch.equal(values[n], p) for n, p in model.named_parameters())


class Both(nn.Module):
    """A network that trains, and a frozen copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.online = host(seed=32)
        self.target = copy.deepcopy(self.online).requires_grad_(requires_grad=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.online(x)
        return y

    def update(self) -> None:
        for ours, theirs in zip(self.target.parameters(), self.online.parameters(), strict=True):
            ours.data.copy_(theirs.data)


@pytest.mark.parametrize("moves", [True, False])
def test_a_frozen_copy_in_the_model(*, moves: bool) -> None:
    both = Both()
    run = wide(model=both)
    assert set(run.engine.layers) == {"online.fc1:width", "online.fc2:width"}
    for epoch in range(9):
        for batch in run.train_batches():
            run.step(batch)
            if moves:
                both.update()
        run.engine.on_epoch_end(epoch)
    grown = {w.units for w in widths(both.online)}
    assert grown != {4}
    assert {w.units for w in widths(both.target)} == (grown if moves else {4})


# --- states ---------------------------------------------------------------------------------------


def fresh(seed: int = 7) -> nn.Module:
    model = host(seed)
    part = batches(teacher(32, seed=1))[0]
    return esper.wrap(model, widen="auto", example=part, loss_fn=loss_fn)


@pytest.mark.parametrize("epochs", [3, 5, 6, 9])
@pytest.mark.parametrize("way", ["plain", "nested", "assigned", "safetensors"])
def test_a_state_dict_regrows_a_fresh_model(way: str, epochs: int, tmp_path: Path) -> None:
    run = wide().run(epochs)
    other, x = fresh(), run.holdout[0][0]
    ids = {n: id(p) for n, p in other.named_parameters()}
    if way == "nested":
        nn.ModuleDict({"net": other}).load_state_dict(
            nn.ModuleDict({"net": run.model}).state_dict()
        )
    elif way == "safetensors":
        checkpoint.save(tmp_path / "state.safetensors", dict(run.model.state_dict()))
        other.load_state_dict(checkpoint.load(tmp_path / "state.safetensors"))
    else:
        state = copy.deepcopy(run.model.state_dict())
        other.load_state_dict(state, assign=way == "assigned")
    assert torch.equal(other.eval()(x), run.model.eval()(x))
    assert [p.shape for p in other.parameters()] == [p.shape for p in run.model.parameters()]
    assert [w.units for w in widths(other)] == [w.units for w in widths(run.model)]
    if way != "assigned":
        assert all(id(p) == ids[n] for n, p in other.named_parameters() if n in ids)
    assert other.state_dict().keys() == run.model.state_dict().keys()


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 8])
def test_a_resumed_run_is_the_one_that_was_not_stopped(stop: int) -> None:
    def make() -> SmallRun:
        scheduler = lambda o: OneCycleLR(o, 0.02, total_steps=20)  # noqa: E731
        return wide(make_scheduler=scheduler, worth=(KEPT, CULLED, KEPT))

    whole, stopped = make().run(12), make().run(stop)
    parts = (stopped.model, stopped.engine, stopped.optimizer, stopped.scheduler)
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    random = torch.get_rng_state()
    resumed = make()
    resumed.model.load_state_dict(states[0])
    resumed.engine.load_state_dict(states[1])
    resumed.optimizer.load_state_dict(states[2])
    resumed.scheduler.load_state_dict(states[3])
    torch.set_rng_state(random)
    resumed.run(12, first=stop)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert whole.losses[-6:] == resumed.losses[-6:]
    assert whole.reports[stop:] == resumed.reports
    assert whole.engine.used == resumed.engine.used


@pytest.mark.parametrize("saved", [1, 3, 4, 6])
@pytest.mark.parametrize("order", ["model first", "optimizer first", "model alone"])
def test_an_earlier_state_is_restored(saved: int, order: str) -> None:
    run = wide().run(saved)
    model, optimizer = (copy.deepcopy(x.state_dict()) for x in (run.model, run.optimizer))
    x = run.holdout[0][0]
    before = run.model.eval()(x).detach().clone()
    units = [w.units for w in widths(run.model)]
    run.run(10, first=saved)
    assert [w.units for w in widths(run.model)] != units
    if order == "optimizer first":
        run.optimizer.load_state_dict(optimizer)
    run.model.load_state_dict(model)
    if order == "model first":
        run.optimizer.load_state_dict(optimizer)
    assert torch.equal(run.model.eval()(x), before)
    assert [w.units for w in widths(run.model)] == units
    run.run(14, first=10)
    check_trained(run)
    run.engine.finish()
    assert run.engine.used >= size(run) - size(wide())  # a kernel without a graft stays apart


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_host_that_falls_ill_is_rolled_back_over_a_merge() -> None:
    run = wide(config=settings(train_epochs=1, blend_epochs=2, budget=150))
    done = 0
    for epoch in range(16):
        run.epoch(epoch)
        blending = [g for g in run.engine.grafts.grafts if g.state == "blending"]
        merged = any(w.units > 4 for w in widths(run.model))
        if blending and merged and done < 2:
            done += 1
            before = {k: v.clone() for k, v in run.model.state_dict().items() if "seeds" not in k}
            for batch in run.train_batches():
                run.step(batch)
            with torch.no_grad():
                for parameter in run.model.parameters():
                    parameter.fill_(math.nan)
            report = run.engine.on_epoch_end(100 + epoch)
            assert "rolled back" in str(report)
            now = run.model.state_dict()
            assert all(torch.equal(now[k], v) for k, v in before.items() if "extra" not in k)
            run.engine.progress.epoch = epoch
    assert done
    check_trained(run)


def test_units_that_become_nan_are_dropped() -> None:
    run = wide().run(2)
    (graft,) = run.engine.grafts.grafts
    with torch.no_grad():
        next(graft.kernel.module.parameters()).fill_(math.nan)
    run.run(6, first=2)
    first = next(v for report in run.reports for v in report.verdicts)
    assert not first.kept
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_unwrapping_gives_the_born_host_back() -> None:
    run = wide().run(9)
    shapes = {n: p.shape for n, p in host().named_parameters()}
    kept = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    with pytest.raises(esper.EsperError, match="has grown"):
        esper.unwrap(run.model)
    plain: Any = esper.unwrap(run.model, discard_grown=True)
    assert {n: p.shape for n, p in plain.named_parameters()} == shapes
    assert torch.equal(plain.fc1.weight, kept["fc1.weight"][:4])
    assert (plain.fc1.out_features, plain.norm.num_features, plain.fc2.in_features) == (4, 4, 4)
    assert not any(isinstance(m, KasminaWidth) for m in plain.modules())
    plain(run.holdout[0][0])


@pytest.mark.parametrize("epochs", [3, 4, 5, 6, 9])
def test_a_hardened_model_needs_no_esper(epochs: int) -> None:
    run = wide().run(epochs)
    x = run.holdout[0][0]
    state = {k: v.clone() for k, v in run.model.state_dict().items()}
    hard = esper.harden(run.model)
    expected, found = run.model.eval()(x), hard.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert {type(m).__module__.partition(".")[0] for m in hard.modules()} == {"torch"}
    assert all(torch.equal(run.model.state_dict()[k], v) for k, v in state.items())
    assert not any("width" in name for name in hard.state_dict())
    run.run(epochs + 2, first=epochs)
