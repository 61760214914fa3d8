"""Loops in which the user's own code looks at the model's modules, parameters and state."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState
from esper.execution import lifecycle
from esper.execution.concealed import every_tensor
from esper.execution.surgery import kasmina_layers
from esper.services.tamiyo.report import EpochReport
from tests.unit.services.small_run import SEEDS, SmallRun, host, settings

NEVER_BLENDS = settings(train_epochs=50)
BLENDS_SOON = settings(train_epochs=1, keep_stderrs=0.0)


def penalised(run: SmallRun) -> None:
    """Two epochs with a weight penalty, clipping by norm and a log of gradient norms."""
    norms = []
    for number in range(2):
        for batch in run.train_batches():
            run.model.train()
            run.optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in run.model.parameters())
            (run.loss_fn(run.model, batch).mean() + 0.01 * penalty).backward()  # type: ignore[no-untyped-call]
            norms += [float(p.grad.norm()) for p in run.model.parameters() if p.grad is not None]
            assert all(p.grad is not None for p in run.model.parameters())
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
            run.optimizer.step()
            if run.tamiyo is not None:
                run.tamiyo.on_batch_end(batch)
        if run.tamiyo is not None:
            run.tamiyo.on_epoch_end(number)


def test_what_runs_over_all_parameters_sees_the_host_alone_until_blending() -> None:
    grown = SmallRun(config=NEVER_BLENDS)
    penalised(grown)
    control = SmallRun(grown=False)
    penalised(control)
    assert any(SeedState.TRAINING in layer.seed_states for layer in grown.engine.layers.values())
    assert grown.engine.used > 0
    theirs = list(control.model.parameters())
    ours = list(grown.model.parameters())
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_log_of_gradient_norms_runs_through_a_graft() -> None:
    run = SmallRun(config=BLENDS_SOON)

    def report_of(number: int) -> EpochReport:
        for batch in run.train_batches():
            run.step(batch)
            assert all(p.grad is not None for p in run.model.parameters())
        return run.engine.on_epoch_end(number)

    reports = [report_of(number) for number in range(6)]
    assert {step.new for report in reports for step in report.steps} >= {"training", "blending"}


# --- a wrapped model inside other modules ---------------------------------------------------------


class Task(nn.Module):
    """Holds a network as LightningModule, DistributedDataParallel or a loss wrapper do."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.first = nets[0]  # a second way to the same module

    @override
    def forward(self, x: Tensor) -> Tensor:
        return sum((net(x) for net in self.nets), torch.zeros(()))


def wrapped_host() -> nn.Module:
    return esper.wrap(host(), ["fc1"], SEEDS)


NESTED: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "task": (lambda: Task(wrapped_host()), {"nets.0.fc1"}),
    "deeper": (lambda: nn.Sequential(nn.Sequential(wrapped_host())), {"0.0.fc1"}),
    "parallel": (lambda: nn.DataParallel(wrapped_host()), {"module.fc1"}),
    "two": (lambda: Task(wrapped_host(), wrapped_host()), {"nets.0.fc1", "nets.1.fc1"}),
}


def nested_run(make: Callable[[], nn.Module]) -> SmallRun:
    """A run over a model that is wrapped already."""
    run = SmallRun(grown=False, model=make())
    run.tamiyo = esper.Tamiyo(
        run.model,
        run.optimizer,
        loss_fn=run.loss_fn,
        holdout=run.holdout,
        config=BLENDS_SOON,
    )
    return run


@pytest.mark.parametrize("how", NESTED)
def test_a_layer_has_one_name_however_deep_it_is(how: str) -> None:
    make, names = NESTED[how]
    run = nested_run(make)
    assert set(run.engine.layers) == names
    assert {layer.name for layer in run.engine.layers.values()} == names
    run.run(6)
    told = {step.layer_name for report in run.reports for step in report.steps}
    logged = {e.data["layer"] for e in run.engine.events() if e.kind == "lifecycle"}
    assert told == logged
    assert told <= names
    assert {step.new for r in run.reports for step in r.steps} >= {"training", "blending"}
    x = run.holdout[0][0]
    run.model.eval()
    assert torch.equal(esper.harden(run.model)(x), run.model(x))


@pytest.mark.parametrize("how", NESTED)
def test_a_nested_run_resumes_where_it_stopped(how: str) -> None:
    make, _ = NESTED[how]
    torch.manual_seed(0)
    whole = nested_run(make).run(3)
    states = copy.deepcopy(
        (whole.model.state_dict(), whole.engine.state_dict(), whole.optimizer.state_dict())
    )
    drawn = torch.get_rng_state()
    whole.run(6, first=3)
    resumed = nested_run(make)
    resumed.model.load_state_dict(states[0])
    resumed.engine.load_state_dict(states[1])
    resumed.optimizer.load_state_dict(states[2])
    torch.set_rng_state(drawn)
    resumed.run(6, first=3)
    assert [r.holdout_loss for r in resumed.reports] == [r.holdout_loss for r in whole.reports[3:]]
    theirs = resumed.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.model.state_dict().items())


def test_a_topology_that_cannot_be_rebuilt_changes_nothing_around_the_wrapped_model() -> None:
    run = nested_run(lambda: nn.Sequential(nn.Linear(6, 6), wrapped_host()))
    state = {key: torch.zeros_like(value) for key, value in run.model.state_dict().items()}
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(ConfigError, match=r"layer '1\.fc1'.* is not the topology"):
        run.model.load_state_dict(state)
    after = run.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


# --- state dicts that are loaded in mid-run -------------------------------------------------------


def held(run: SmallRun) -> set[int]:
    return {id(p) for group in run.optimizer.param_groups for p in group["params"]}


def visible(run: SmallRun) -> set[int]:
    return {id(p) for p in run.model.parameters()}


def test_a_state_dict_of_equal_topology_keeps_every_parameter() -> None:
    run = SmallRun(config=BLENDS_SOON).run(5)
    drawn = torch.get_rng_state()
    tensors = list(every_tensor(run.model))
    best = copy.deepcopy(run.model.state_dict())
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)
    run.model.load_state_dict(best)
    assert all(a is b for a, b in zip(tensors, every_tensor(run.model), strict=True))
    theirs = run.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in best.items())
    torch.set_rng_state(drawn)
    run.run(8, first=5)
    assert run.losses == SmallRun(config=BLENDS_SOON).run(8).losses


@pytest.mark.parametrize("saved", [0, 1, 2, 3, 4, 5])
def test_a_best_epoch_of_another_topology_leaves_no_kernel_that_nobody_trains(saved: int) -> None:
    run = SmallRun(config=BLENDS_SOON).run(saved)
    best = copy.deepcopy(run.model.state_dict())
    run.run(7, first=saved)
    run.model.load_state_dict(best)
    run.epoch(7)
    assert held(run) == visible(run)
    for layer in run.engine.layers.values():
        active = [i for i, s in enumerate(layer.seed_states) if s in lifecycle.ISOLATED]
        grafts = [g for g in run.engine.grafts.grafts if g.layer is layer]
        assert set(active) <= {g.decision.seed_idx for g in grafts}
        assert not any(g.lost for g in grafts)
    run.run(11, first=8)
    assert held(run) == visible(run)
    run.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    run.run(13, first=11)
    assert held(run) == visible(run)


def test_the_kernels_of_a_checkpoint_join_an_optimizer_that_was_made_before() -> None:
    grown = SmallRun(config=BLENDS_SOON).run(6)
    run = SmallRun(config=NEVER_BLENDS)
    run.model.load_state_dict(grown.model.state_dict())
    assert held(run) != visible(run)
    run.run(1)
    assert held(run) == visible(run)


# --- layers without a shape -----------------------------------------------------------------------


def test_a_lazy_layer_is_named_before_anything_starts() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(ConfigError, match=r"layer '0' is a LazyLinear .* before esper\.wrap"):
        esper.wrap(model, ["0"])
    with pytest.raises(ConfigError, match=r"layer '0\.0' is a LazyLinear .* before esper\.wrap"):
        esper.wrap(nn.Sequential(model), ["0"])
    model[2](torch.zeros(2, 6))
    esper.wrap(model, ["2"])
    batch = torch.zeros(2, 5), torch.zeros(2)
    with pytest.raises(ConfigError, match=r"layer '0' is a LazyLinear .* before esper\.Tamiyo"):
        esper.Tamiyo(
            model,
            torch.optim.SGD(model[2].parameters()),
            loss_fn=lambda m, b: m(b[0]).sum(1),
            holdout=[batch],
        )
    model(batch[0])
    assert set(kasmina_layers(esper.wrap(model, ["0"]))) == {"0", "2"}


# --- averages of the weights ----------------------------------------------------------------------


class ModelEma(nn.Module):
    """An average over the whole state dict, as timm keeps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        theirs = model.state_dict().values()
        for average, value in zip(self.module.state_dict().values(), theirs, strict=True):
            average.copy_(0.9 * average + 0.1 * value)


@torch.no_grad()
def moved(averages: Any, values: Any, _count: Any) -> None:
    torch._foreach_lerp_(averages, values, 0.1)


def averaged(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=moved)


def buffered(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, use_buffers=True)


class Teacher:
    """A momentum copy, paired with the model by position, past autograd; no module holds it."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).requires_grad_(requires_grad=False)

    def update_parameters(self, model: nn.Module) -> None:
        for ours, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            ours.data = 0.9 * ours.data + 0.1 * theirs.data

    def parameters(self) -> Any:
        return self.module.parameters()


class ByName(Teacher):
    """Paired by the names of the state dict, and loaded."""

    @override
    def update_parameters(self, model: nn.Module) -> None:
        average = self.module.state_dict()
        for name, value in model.state_dict().items():
            average[name] = 0.9 * average[name] + 0.1 * value
        self.module.load_state_dict(average)


@pytest.mark.parametrize("make", [averaged, buffered, ModelEma, Teacher, ByName])
def test_an_average_made_before_growth_grows_with_the_model(make: Callable[..., Any]) -> None:
    run = SmallRun(config=BLENDS_SOON)
    ema, snapshot = make(run.model), copy.deepcopy(run.model)
    by_hand: dict[str, Tensor] = {}
    for number in range(8):
        for batch in run.train_batches():
            run.step(batch)
            ema.update_parameters(run.model)
        run.reports.append(run.engine.on_epoch_end(number))
        theirs = [(n, p.shape) for n, p in run.model.named_parameters()]
        assert [(n, p.shape) for n, p in ema.module.named_parameters()] == theirs
        for name, p in ema.module.named_parameters():
            assert p is by_hand.setdefault(name, p) or "seeds" in name or "fossils" in name
    assert {step.new for r in run.reports for step in r.steps} >= {"training", "blending"}
    assert len(list(snapshot.parameters())) == len(list(host().parameters()))
    ours = set(map(id, every_tensor(run.model)))
    assert not any(id(t) in ours for t in every_tensor(ema.module))

    kept, average = copy.deepcopy(run.model.state_dict()), copy.deepcopy(ema.module.state_dict())
    before = visible(run)
    run.model.load_state_dict(average)  # swapped in for an evaluation
    theirs_now = run.model.state_dict()
    assert all(torch.equal(value, theirs_now[key]) for key, value in average.items())
    run.model.load_state_dict(kept)
    assert visible(run) == before
    run.run(9, first=8)
    assert held(run) == visible(run)


def test_a_copy_that_is_set_anew_stays_a_snapshot() -> None:
    run = SmallRun(config=BLENDS_SOON)
    best, x = copy.deepcopy(run.model), run.holdout[0][0]
    for number in range(8):
        run.run(number + 1, first=number)
        if number in (1, 4):
            best.load_state_dict(run.model.state_dict())
            told = best.eval()(x)
    assert torch.equal(best(x), told)
    run.model.load_state_dict(best.state_dict())
    run.run(9, first=8)
    assert held(run) == visible(run)


def test_an_average_inside_the_model_does_not_count_as_a_layer_to_grow() -> None:
    inner = wrapped_host()
    task = Task(inner)
    task.ema = averaged(inner)
    run = nested_run(lambda: task)
    assert set(run.engine.layers) == {"nets.0.fc1"}
    run.run(5)
    assert len(list(task.ema.parameters())) == len(list(inner.parameters()))


# --- state that passes on the side must not move --------------------------------------------------


class Restless(nn.Module):
    """Counts, draws, remembers, and writes into a parameter, in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.linspace(-1, 1, 6), requires_grad=False)
        self.calls, self.seen = 0, [0.0]
        self.average = torch.zeros(6)
        self.draws = torch.Generator().manual_seed(3)
        self.others = np.random.default_rng(4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(float(x.detach().mean()))
        with torch.no_grad():
            self.code.lerp_(x.mean(0), 0.1)
            self.average.lerp_(x.mean(0), 0.1)
        noise = torch.rand(x.shape, generator=self.draws) + float(self.others.random())
        return x + 0.01 * self.calls * noise + self.code + self.average


def test_no_pass_on_the_side_moves_what_modules_keep_for_themselves() -> None:
    grown, control = (
        SmallRun(
            grown=tended,
            config=NEVER_BLENDS,
            model=nn.Sequential(Restless(), host()),
            layers=("1.fc1",),
        ).run(3)
        for tended in (True, False)
    )
    assert any(SeedState.TRAINING in layer.seed_states for layer in grown.engine.layers.values())
    ours, theirs = grown.model.get_submodule("0"), control.model.get_submodule("0")
    assert isinstance(ours, Restless)
    assert isinstance(theirs, Restless)
    assert ours.calls == theirs.calls == 18  # batches; no pass on the side counts
    assert ours.seen == theirs.seen
    assert torch.equal(ours.average, theirs.average)
    assert grown.losses == control.losses
    for a, b in zip(grown.model.parameters(), control.model.parameters(), strict=True):
        assert torch.equal(a, b)
