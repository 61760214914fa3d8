"""Parameters that come and go: no state is lost, and no learning rate is what it would not be."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from esper.contracts.errors import ConfigError
from esper.execution.training.optimizers import (
    KERNELS,
    adopt,
    discard,
    goes_apart,
    group_names,
    like,
    replay_groups,
)
from tests.integration.optimizer_doubles import (
    Bookkeeper,
    ScheduleWrapper,
    WarmupScheduler,
    Wrapper,
)

Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.95)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.02, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.05), foreach=False),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def named(module: nn.Module, prefix: str = "k") -> list[tuple[str, nn.Parameter]]:
    return [(f"{prefix}.{name}", p) for name, p in module.named_parameters()]


def step(optimizer: Optimizer, module: nn.Module, times: int = 1) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(8))
    for _ in range(times):
        module.zero_grad()
        torch.autograd.backward(module(x).square().sum())
        optimizer.step()


def values(module: nn.Module) -> list[Any]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def settings(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("params", "param_names", KERNELS)}


# --- optimizers -----------------------------------------------------------------------------------


@every_optimizer
def test_like_has_the_class_and_the_present_settings(make: Make) -> None:
    host, kernel = model(), model(1)
    optimizer = make(host.parameters())
    schedule = schedules.StepLR(optimizer, step_size=1, gamma=0.5)
    step(optimizer, host)
    schedule.step()
    own = like(optimizer, kernel.parameters())
    assert type(own) is type(optimizer)
    theirs = settings(optimizer.param_groups[0])
    del theirs["initial_lr"]
    assert settings(own.param_groups[0]) == theirs
    assert own.param_groups[0]["lr"] is not optimizer.param_groups[0]["lr"] or isinstance(
        own.param_groups[0]["lr"], float
    )
    before = values(host)
    step(own, kernel)
    assert equal(values(host), before)


def test_like_takes_the_group_of_the_layer() -> None:
    host = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    groups: list[dict[str, Any]] = [
        {"params": host[0].parameters()},
        {"params": host[1].parameters(), "lr": 0.7},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    kernel = model()
    assert like(optimizer, kernel.parameters()).param_groups[0]["lr"] == 0.1
    own = like(optimizer, kernel.parameters(), beside=host[1].parameters())
    assert own.param_groups[0]["lr"] == 0.7


def test_state_that_a_class_makes_as_it_is_constructed_is_made_for_what_joins() -> None:
    host, kernel = model(), model(1)
    optimizer = torch.optim.Adagrad(host.parameters(), lr=0.1, initial_accumulator_value=0.5)
    adopt(optimizer, list(kernel.named_parameters()))
    for parameter in kernel.parameters():
        state = optimizer.state[parameter]  # PyTorch 2.11 does not make it in its next step
        assert torch.equal(state["sum"], torch.full_like(parameter, 0.5))


class Odd(torch.optim.SGD):
    """An optimizer that cannot be made from its settings."""

    def __init__(self, params: Any, secret: int) -> None:
        super().__init__(params, lr=0.1 * secret)


def test_what_cannot_be_imitated_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"cannot make a Odd for a seed.*seed_optimizer=lambda"):
        like(Odd(model().parameters(), 1), model().parameters())


@every_optimizer
@pytest.mark.parametrize("names", [False, True])
def test_adopted_parameters_go_on_bit_for_bit(make: Make, *, names: bool) -> None:
    """The next steps are those that the seed's own optimizer would have made."""
    host, kernel = model(), model(1)
    optimizer = make(host.named_parameters() if names else host.parameters())
    step(optimizer, host, 2)
    own = like(optimizer, kernel.parameters())
    step(own, kernel, 3)
    twin = copy.deepcopy(kernel)
    its_own = like(optimizer, twin.parameters())
    its_own.load_state_dict(copy.deepcopy(own.state_dict()))
    control = copy.deepcopy(host)
    controls = make(control.named_parameters() if names else control.parameters())
    controls.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    adopt(optimizer, named(kernel), source=own)
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"][-4:])) == list(map(id, kernel.parameters()))
    for _ in range(2):
        host.zero_grad()
        kernel.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(8))
        torch.autograd.backward(host(x).square().sum() + kernel(x).square().sum())
        optimizer.step()
        step(its_own, twin)
        step(controls, control)
    assert equal(values(kernel), values(twin))
    assert equal(values(host), values(control))


def test_state_of_another_kind_is_not_carried() -> None:
    """It would be a KeyError in the middle of the host's next step."""
    host, kernel = model(), model(1)
    for seed_optimizer in (
        torch.optim.SGD(kernel.parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(kernel.parameters(), amsgrad=True),
    ):
        optimizer = torch.optim.Adam(host.parameters())
        step(optimizer, host)
        step(seed_optimizer, kernel, 2)
        adopt(optimizer, named(kernel), source=seed_optimizer)
        assert not any(p in optimizer.state for p in kernel.parameters())
        step(optimizer, kernel)
        assert all("exp_avg" in optimizer.state[p] for p in kernel.parameters())


def two_groups(make: Callable[..., Optimizer]) -> tuple[nn.ModuleList, Optimizer]:
    host = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    groups: list[dict[str, Any]] = [
        {"params": host[0].parameters(), "weight_decay": 0.0},
        {"params": host[1].parameters(), "lr": 0.5, "weight_decay": 0.2, "mine": "yes"},
    ]
    return host, make(groups, lr=0.1)


def test_parameters_join_the_group_of_the_layer() -> None:
    host, optimizer = two_groups(torch.optim.Adam)
    first, second = optimizer.param_groups
    before = [settings(first), settings(second)]
    adopt(optimizer, named(model()), beside=host[1].parameters())
    adopt(optimizer, named(model(3)), beside=())
    assert [settings(group) for group in optimizer.param_groups] == before
    assert [len(first["params"]), len(second["params"])] == [2 + 4, 2 + 4]


def test_a_group_apart_is_like_that_of_the_layer() -> None:
    host, optimizer = two_groups(Bookkeeper)
    kernel = model()
    adopt(optimizer, named(kernel), beside=host[1].parameters())
    assert settings(optimizer.param_groups[2]) == settings(optimizer.param_groups[1])
    assert optimizer.param_groups[2]["params"] == list(kernel.parameters())
    adopt(optimizer, named(model(3)), beside=())
    assert settings(optimizer.param_groups[3]) == settings(optimizer.param_groups[0])


def test_what_counts_in_its_groups_is_apart_once_it_has_counted() -> None:
    host = model()
    optimizer = schedulefree.AdamWScheduleFree(host.parameters())
    adam = torch.optim.AdamW([{"params": host.parameters(), "name": "a user's own"}])
    for one in (optimizer, adam):
        assert not goes_apart(one)
    optimizer.train()
    for one in (optimizer, adam):
        step(one, host)
    assert goes_apart(optimizer)
    assert not goes_apart(adam, 0, like(adam, model(1).parameters()))
    assert goes_apart(Bookkeeper(host.parameters()))


def test_a_parameter_is_not_adopted_twice() -> None:
    host, kernel = model(), model(1)
    for make in (torch.optim.Adam, Bookkeeper):
        optimizer = make(host.parameters())
        schedule = schedules.LambdaLR(optimizer, lambda _: 1.0)
        adopt(optimizer, named(kernel), scheduler=schedule)
        before = copy.deepcopy(optimizer.param_groups)
        with pytest.raises(ValueError, match=r"more than one parameter group|optimizer already"):
            adopt(optimizer, named(kernel), scheduler=schedule)
        assert len(optimizer.param_groups) == len(schedule.base_lrs) == len(before)


@every_optimizer
@pytest.mark.parametrize("names", [False, True])
def test_discard_restores_the_optimizer_exactly(make: Make, *, names: bool) -> None:
    host, first, second = model(), model(1), model(2)
    optimizer = make(host.named_parameters() if names else host.parameters())
    step(optimizer, host, 2)
    before = copy.deepcopy(optimizer.state_dict())
    for kernel in (first, second):
        own = like(optimizer, kernel.parameters())
        step(own, kernel)
        adopt(optimizer, named(kernel, f"k{kernel is second}"), source=own)
    discard(optimizer, first.parameters())
    (group,) = optimizer.param_groups
    kept = [*host.parameters(), *second.parameters()]
    assert [id(p) for p in group["params"]] == [id(p) for p in kept]
    discard(optimizer, second.parameters())
    discard(optimizer, second.parameters())
    assert same_state(before, optimizer.state_dict())


def test_discard_of_a_part_of_a_group() -> None:
    host = model()
    optimizer = torch.optim.Adam(host.named_parameters())
    step(optimizer, host)
    gone = list(host.parameters())[1]
    discard(optimizer, [gone])
    (group,) = optimizer.param_groups
    assert group["param_names"] == ["0.weight", "2.weight", "2.bias"]
    assert len(group["params"]) == len(optimizer.state) == 3
    step(optimizer, host)


def test_a_slot_that_is_used_again_after_its_kernel_was_kept() -> None:
    """Named groups keep the first kernel under the name that the second one gets."""
    host = model()
    optimizer = torch.optim.Adam(host.named_parameters())
    first, second = model(1), model(2)
    for kernel in (first, second):
        adopt(optimizer, named(kernel, "fc.seeds.0.kernel"))
    for kernel in (host, first, second):
        step(optimizer, kernel)
    assert len(optimizer.param_groups[0]["params"]) == 3 * 4


def same_state(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# --- schedulers -----------------------------------------------------------------------------------

Schedule = Callable[[Optimizer], Any]


def _sequential(optimizer: Optimizer) -> Any:
    warm = schedules.LinearLR(optimizer, 0.1, total_iters=4)
    cool = schedules.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    return schedules.SequentialLR(optimizer, [warm, cool], milestones=[4])


def _chained(optimizer: Optimizer) -> Any:
    parts = [
        schedules.ConstantLR(optimizer, 0.5, total_iters=3),
        schedules.ExponentialLR(optimizer, 0.9),
        schedules.MultiplicativeLR(optimizer, lambda _: 0.99),
    ]
    return schedules.ChainedScheduler(parts, optimizer=optimizer)


def _nested(optimizer: Optimizer) -> Any:
    return schedules.SequentialLR(
        optimizer, [_chained(optimizer), schedules.CosineAnnealingLR(optimizer, 8)], milestones=[5]
    )


SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda epoch: 1 - 0.01 * epoch),
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5, 9], 0.5),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.25, total_iters=6),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.2, total_iters=9),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 10, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 4, 2),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=20),
    "OneCycleLR three phases": lambda o: schedules.OneCycleLR(
        o, 0.5, total_steps=20, three_phase=True, cycle_momentum=False
    ),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.01, 0.3, step_size_up=4, mode="triangular2"),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 12, 2.0),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0, min_lr=[0.001]),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "nested": _nested,
}


def advance(schedule: Any) -> None:
    if isinstance(schedule, schedules.ReduceLROnPlateau):
        schedule.step(1.0)
    else:
        schedule.step()


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("base", ["momentum", "adam", "apart"])
# A ChainedScheduler inside a SequentialLR says so at construction, without any optimizer of ours.
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_every_schedule_goes_on(make: Schedule, base: str) -> None:
    """Grow, grow, shrink, grow: the host's rates and momenta are those of an un-grown run."""
    runs = []
    for grows in (False, True):
        host = model()
        optimizer = {**OPTIMIZERS, "apart": Bookkeeper}[base](host.parameters())
        schedule = make(optimizer)
        kernels = [model(i) for i in range(1, 4)]
        seen = []
        for turn in range(16):
            if grows and turn in (2, 6, 11):
                kernel = kernels[(2, 6, 11).index(turn)]
                adopt(optimizer, named(kernel), scheduler=schedule, beside=host.parameters())
            if grows and turn == 8:
                discard(optimizer, kernels[0].parameters(), schedule)
            if grows and turn == 14:
                discard(optimizer, kernels[1].parameters(), schedule)
                discard(optimizer, kernels[2].parameters(), schedule)
            for module in (host, *kernels) if grows else (host,):
                step_gradients(module)
            optimizer.step()
            advance(schedule)
            first = settings(optimizer.param_groups[0])
            for group in optimizer.param_groups[1:]:
                assert settings(group) == first
            seen.append((first["lr"], first.get("momentum"), first.get("betas")))
            assert schedule.get_last_lr() == [g["lr"] for g in optimizer.param_groups]
        runs.append((seen, values(host), schedule_state(schedule)))
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]


def step_gradients(module: nn.Module) -> None:
    module.zero_grad()
    torch.autograd.backward(module(torch.ones(2, 3)).square().sum())


def schedule_state(schedule: Any) -> Any:
    """What the scheduler would write into a checkpoint; its lambdas aside."""
    return repr({k: v for k, v in schedule.state_dict().items() if not k.startswith("lr_lambdas")})


def test_schedules_of_several_groups_follow_the_group_of_the_layer() -> None:
    host, kernel = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), model()
    groups: list[dict[str, Any]] = [
        {"params": host[0].parameters()},
        {"params": host[1].parameters(), "lr": 1.0},
    ]
    optimizer = Bookkeeper(groups, lr=0.1)
    schedule = schedules.LambdaLR(optimizer, [lambda e: 1 / (e + 1), lambda e: 0.5**e])
    optimizer.step()
    schedule.step()
    adopt(optimizer, named(kernel), scheduler=schedule, beside=host[1].parameters())
    for _ in range(3):
        optimizer.step()
        schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 / 5, 0.5**4, 0.5**4])


def test_lists_of_other_libraries_are_found_by_what_they_hold() -> None:
    host, kernel = model(), model(1)
    optimizer = Bookkeeper(host.parameters(), lr=0.1)
    schedule = WarmupScheduler(optimizer)
    held = {"plain": ScheduleWrapper(schedule), "interval": "epoch"}
    adopt(optimizer, named(kernel), scheduler=[held])
    assert [len(schedule.base_values), len(schedule.warmup_steps)] == [2, 2]
    assert [len(schedule.decay_t), len(schedule.noise_range_t)] == [1, 1]
    schedule.step()
    assert optimizer.param_groups[1]["lr"] == optimizer.param_groups[0]["lr"]
    discard(optimizer, kernel.parameters(), [held])
    assert [len(schedule.base_values), len(schedule.warmup_steps)] == [1, 1]


def test_phases_of_a_schedule_are_not_taken_for_groups() -> None:
    """OneCycleLR has two phases, and here the optimizer has two groups."""
    host, kernel = model(), model(1)
    groups: list[dict[str, Any]] = [{"params": [p]} for p in list(host.parameters())[:2]]
    optimizer = Bookkeeper(groups, lr=0.1, momentum=0.9)
    schedule = schedules.OneCycleLR(optimizer, 0.5, total_steps=20)
    adopt(optimizer, named(kernel), scheduler=schedule)
    assert len(schedule._schedule_phases) == 2
    assert len(schedule.base_lrs) == 3


def test_a_scheduler_of_another_optimizer_is_left_alone() -> None:
    host, kernel = model(), model(1)
    optimizer, other = (Bookkeeper(host.parameters(), lr=0.1) for _ in range(2))
    schedule = schedules.StepLR(other, 2)
    adopt(optimizer, named(kernel), scheduler=schedule)
    assert len(schedule.base_lrs) == 1


def test_parameters_join_the_optimizer_inside_a_wrapper() -> None:
    host, kernel = model(), model(1)
    inner = torch.optim.Adam(host.parameters(), lr=0.1)
    wrapper = Wrapper(inner)
    own = like(wrapper, kernel.parameters())
    assert type(own) is torch.optim.Adam
    step(own, kernel)
    adopt(wrapper, named(kernel), source=own)
    assert all("exp_avg" in inner.state[p] for p in kernel.parameters())
    discard(wrapper, kernel.parameters())
    assert len(inner.param_groups[0]["params"]) == 4
    assert not inner.state


# --- checkpoints ----------------------------------------------------------------------------------


class Grown(nn.Module):
    """A host and two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.first, self.second = model(), model(1), model(2)


@every_optimizer
@pytest.mark.parametrize("schedule", ["LambdaLR", "OneCycleLR three phases", "SequentialLR"])
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_groups_are_replayed_and_the_next_step_is_bit_exact(make: Make, schedule: str) -> None:
    def steps(grown: Grown, optimizer: Optimizer, scheduler: Any) -> None:
        for _ in range(3):
            for part in grown.children():
                step_gradients(part)
            optimizer.step()
            scheduler.step()

    grown = Grown()
    optimizer = make(grown.host.parameters())
    scheduler = SCHEDULES[schedule](optimizer)
    for kernel in (grown.first, grown.second):
        adopt(optimizer, named(kernel), scheduler=scheduler)
        steps(grown, optimizer, scheduler)
    state = copy.deepcopy(
        (
            grown.state_dict(),
            optimizer.state_dict(),
            scheduler.state_dict(),
            group_names(optimizer, grown),
        )
    )
    steps(grown, optimizer, scheduler)

    fresh = Grown()
    fresh.load_state_dict(state[0])
    again = make(fresh.host.parameters())
    resumed = SCHEDULES[schedule](again)
    grown_names = {n: n for n, _ in fresh.named_parameters() if not n.startswith("host")}
    replay_groups(again, fresh, state[3], resumed, grown=grown_names)
    again.load_state_dict(state[1])
    resumed.load_state_dict(state[2])
    steps(fresh, again, resumed)
    assert equal(values(grown), values(fresh))
    assert same_state(optimizer.state_dict(), again.state_dict())


def test_other_groups_than_those_of_the_checkpoint() -> None:
    grown = Grown()
    optimizer = torch.optim.Adam(grown.host.parameters())
    names = group_names(optimizer, grown)
    with pytest.raises(ConfigError, match="groups are not those of the checkpoint; build it over"):
        replay_groups(torch.optim.Adam(grown.first.parameters()), grown, names, grown={})
    for fewer in (names[0][:-1], [*names[0], "first.0.weight"]):
        with pytest.raises(ConfigError, match="groups are not those of the checkpoint"):
            replay_groups(optimizer, grown, [fewer], grown={})
    assert len(optimizer.param_groups) == 1
