"""Loops with several optimizers, other libraries' ones, and schedulers of any kind."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import schedulefree
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer, Rprop, SparseAdam
from torch.optim import lr_scheduler as schedulers

import esper
from esper.contracts.errors import ConfigError
from tests.integration.loop import (
    TRAIN,
    esper_layer,
    group_of,
    kernels,
    tamiyo_of,
    train,
    watched,
    wrapped,
)
from tests.integration.optimizer_doubles import (
    MatricesOnly,
    ScheduleWrapper,
    SharpnessAware,
    SlowWeights,
    Wrapper,
)
from tests.unit.services.small_run import CULLED, SmallRun, host, loss_fn, settings

# --- several optimizers ---------------------------------------------------------------------------


def two(model: nn.Module) -> tuple[Optimizer, Optimizer]:
    body = [*esper_layer(model, "fc1").parameters(), *model.get_submodule("norm").parameters()]
    return SGD(body, lr=0.001), Adam(esper_layer(model, "fc2").parameters(), lr=0.02)


@pytest.mark.parametrize("kind", [list, tuple, lambda given: dict(zip("ab", given, strict=True))])
def test_each_kernel_joins_the_optimizer_of_its_layer(kind: Callable[[Any], Any]) -> None:
    model = wrapped()
    body, head = two(model)
    tamiyo = tamiyo_of(model, kind((body, head)))
    train(model, tamiyo, (body, head), 12)
    assert kernels(model, "fc1")
    assert kernels(model, "fc2")
    for layer, optimizer, rate in (("fc1", body, 0.001), ("fc2", head, 0.02)):
        for parameter in kernels(model, layer):
            found, group = group_of((body, head), parameter)
            assert found is optimizer
            assert group["lr"] == rate


def test_a_kernel_that_is_culled_when_lbfgs_has_taken_over_does_not_end_it() -> None:
    """Its state spans all parameters, so those of the kernel stay in it, to no effect."""
    run = SmallRun(config=settings(train_epochs=1), worth=(CULLED,))
    for epoch in range(9):
        run.epoch(epoch)
        if any(step.new == "blending" for step in run.reports[-1].steps):
            break
    polish = LBFGS(run.model.parameters(), max_iter=2)
    held = tuple(polish.param_groups[0]["params"])
    for last in range(epoch + 1, epoch + 5):
        for batch in run.train_batches():

            def closure() -> Any:
                polish.zero_grad()
                loss: Any = loss_fn(run.model, batch).mean()  # noqa: B023
                loss.backward()
                return loss

            polish.step(closure)  # type: ignore[no-untyped-call]
            run.engine.on_batch_end(batch)
        run.reports.append(run.engine.on_epoch_end(last))
    assert any(not verdict.kept for report in run.reports for verdict in report.verdicts)
    shown = set(map(id, run.model.parameters()))
    gone = [p for p in held if id(p) not in shown]
    assert gone
    assert all(p.grad is None for p in gone)
    assert tuple(map(id, polish.param_groups[0]["params"])) == tuple(map(id, held))


def test_an_optimizer_that_was_not_given_is_named_before_the_first_batch() -> None:
    model = wrapped()
    body, _head = two(model)
    with pytest.raises(
        ConfigError,
        match=r"layer 'fc2' is trained by another optimizer, Adam.*\[optimizer, other\]",
    ):
        tamiyo_of(model, body)


def test_a_layer_in_no_optimizer_is_frozen_until_one_is_made_for_it() -> None:
    model = wrapped()
    body, _ = two(model)
    del _
    tamiyo = tamiyo_of(model, body)
    train(model, tamiyo, [body], 6)
    assert kernels(model, "fc2")
    assert all(group_of([body], p)[0] is body for p in kernels(model, "fc2"))
    head = Adam(model.get_submodule("fc2.host").parameters(), lr=0.02)
    reports = train(model, tamiyo, [body, head], 12, first=6, step=watched)
    verdicts = [v for r in reports for v in r.verdicts]
    late = [v.why for v in verdicts if v.layer_name == "fc2" and v.began >= 6]
    assert late
    assert all("failed by the loop" in why and "another optimizer, Adam" in why for why in late)


def test_kernels_of_a_frozen_layer_join_its_neighbour() -> None:
    model = wrapped()
    esper_layer(model, "fc1").requires_grad_(False)
    norm, head = two(model)[0], two(model)[1]
    norm = SGD(model.get_submodule("norm").parameters(), lr=0.005)
    tamiyo = tamiyo_of(model, [head, norm])
    train(model, tamiyo, (head, norm), 12)
    assert kernels(model, "fc1")
    assert all(group_of((head, norm), p)[0] is norm for p in kernels(model, "fc1"))


def test_weights_join_weights_and_biases_join_biases() -> None:
    model = wrapped()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=0.02)
    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 10)
    grown = kernels(model, "fc1") + kernels(model, "fc2")
    assert {p.ndim for p in grown} == {1, 2}
    for parameter in grown:
        decay = group_of([optimizer], parameter)[1]["weight_decay"]
        assert decay == (0.1 if parameter.ndim > 1 else 0.0)


def test_a_layer_without_bias_gives_its_kernels_biases_no_decay() -> None:
    model = host()
    model.fc1 = nn.Linear(6, 4, bias=False)
    wrapped(model)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=0.02)
    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 10)
    for parameter in kernels(model, "fc1"):
        decay = group_of([optimizer], parameter)[1]["weight_decay"]
        assert decay == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_run_of_two_optimizers_and_schedulers_resumes_exactly(stop: int) -> None:
    def fresh() -> tuple[nn.Module, list[Any], list[Any], esper.Tamiyo]:
        model = wrapped(host(restless=False))
        pair = list(two(model))
        lambdas = [
            schedulers.LambdaLR(pair[0], lambda e: 0.9**e),
            schedulers.StepLR(pair[1], 2, 0.5),
        ]
        return model, pair, lambdas, tamiyo_of(model, pair, scheduler=lambdas)

    model, pair, lambdas, tamiyo = fresh()
    train(model, tamiyo, pair, stop, schedule=lambdas)
    saved = deepcopy([x.state_dict() for x in (model, tamiyo, *pair, *lambdas)])
    train(model, tamiyo, pair, 9, first=stop, schedule=lambdas)

    again, others, those, resumed = fresh()
    for part, state in zip((again, resumed, *others, *those), saved, strict=True):
        part.load_state_dict(state)
    train(again, resumed, others, 9, first=stop, schedule=those)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, *_, other = fresh()
    other.finish()
    one.load_state_dict(saved[0])
    with pytest.raises(ConfigError, match=r"run with 2 optimizers, and Tamiyo was given 1"):
        tamiyo_of(one, SGD(one.parameters(), lr=0.1)).load_state_dict(saved[1])


# --- optimizers of other libraries ----------------------------------------------------------------


def test_a_wrapped_optimizer_is_the_one_inside() -> None:
    model = wrapped()
    inner = Adam(model.parameters(), lr=0.02)
    optimizer = Wrapper(inner)
    schedule = ScheduleWrapper(schedulers.LambdaLR(inner, lambda e: 0.9**e))
    tamiyo = tamiyo_of(model, optimizer, scheduler=schedule)
    train(model, tamiyo, [optimizer], 8, schedule=[schedule])
    grown = kernels(model, "fc1") + kernels(model, "fc2")
    assert grown
    assert all(group_of([inner], p)[1]["lr"] == inner.param_groups[0]["lr"] for p in grown)


@pytest.mark.parametrize(
    "make",
    [
        schedulefree.AdamWScheduleFree,
        schedulefree.SGDScheduleFree,
        schedulefree.RAdamScheduleFree,
    ],
)
def test_schedule_free_trains_seeds_and_counts_their_own_steps(make: Callable[..., Any]) -> None:
    model = wrapped()
    optimizer = make(model.parameters(), lr=0.02)
    tamiyo = tamiyo_of(model, optimizer)
    for epoch in range(10):
        optimizer.train()
        for batch in TRAIN:
            optimizer.zero_grad()
            torch.autograd.backward(loss_fn(model, batch).mean())
            optimizer.step()
            tamiyo.on_batch_end(batch)
        optimizer.eval()
        report = tamiyo.on_epoch_end(epoch)
        assert all(v.reward is not None for v in report.verdicts)
        assert {group["train_mode"] for group in optimizer.param_groups} == {False}
    first, *rest = optimizer.param_groups
    assert rest
    assert all(0 < group["k"] < first["k"] for group in rest)


def test_matrices_go_to_the_optimizer_of_matrices() -> None:
    model = wrapped()
    matrices = MatricesOnly([p for p in model.parameters() if p.ndim == 2])
    vectors = AdamW([p for p in model.parameters() if p.ndim != 2], lr=0.01)
    tamiyo = tamiyo_of(model, [matrices, vectors])
    train(model, tamiyo, [matrices, vectors], 10)
    grown = kernels(model, "fc1") + kernels(model, "fc2")
    assert {p.ndim for p in grown} == {1, 2}
    for parameter in grown:
        wanted = matrices if parameter.ndim == 2 else vectors
        assert group_of((matrices, vectors), parameter)[0] is wanted


def test_sharpness_aware_steps() -> None:
    model = wrapped()
    optimizer = SharpnessAware(model.parameters(), SGD, lr=0.02, momentum=0.9)

    def step(optimizer: Any, model: nn.Module, batch: Any) -> None:
        optimizer.first_step()
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn(model, batch).mean())
        optimizer.second_step()

    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 10, step=step)
    assert kernels(model, "fc1") + kernels(model, "fc2")


def test_a_wrapper_with_state_of_its_own_is_told_of_kernels() -> None:
    model = wrapped()
    optimizer = SlowWeights(SGD(model.parameters(), lr=0.02))
    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 10)
    grown = kernels(model, "fc1") + kernels(model, "fc2")
    assert grown
    assert all(p in optimizer.state for p in grown)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: Adafactor(ps, lr=0.02),
        lambda ps: Rprop(ps, lr=0.001),
        lambda ps: SGD(ps, lr=0.02, foreach=True, maximize=False),
        lambda ps: Adam(ps, lr=0.02, fused=True),
    ],
    ids=["adafactor", "rprop", "foreach", "fused"],
)
def test_optimizers_that_train_kernels(make: Callable[[Any], Optimizer]) -> None:
    model = wrapped()
    optimizer = make(model.parameters())
    tamiyo = tamiyo_of(model, optimizer)
    train(model, tamiyo, [optimizer], 6)
    (group,) = optimizer.param_groups
    grown = kernels(model, "fc1") + kernels(model, "fc2")
    assert {id(p) for p in grown} <= {id(p) for p in group["params"]}


@pytest.mark.parametrize("options", [{}, {"seed_optimizer": lambda ps: Adam(ps, lr=0.01)}])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda m: LBFGS(m.parameters()),
            r"LBFGS .*size of tensor.*AdamW or SGD",
        ),
        (lambda m: SparseAdam(m.parameters()), r"SparseAdam .*dense.*AdamW or SGD"),
    ],
    ids=["lbfgs", "sparse"],
)
def test_what_cannot_train_kernels_is_refused(
    make: Callable[[nn.Module], Optimizer], why: str, options: dict[str, Any]
) -> None:
    model = wrapped()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=why):
        tamiyo_of(model, make(model), **options)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{}, {"seed_optimizer": lambda ps: Adam(ps, lr=0.01)}])
def test_matrices_alone_are_refused(options: dict[str, Any]) -> None:
    model = host()
    for part in model.children():
        part.register_parameter("bias", None)
    model.norm = nn.Identity()
    wrapped(model)
    with pytest.raises(
        ConfigError, match=r"MatricesOnly cannot train .* 1 axis.*2D parameters only"
    ):
        tamiyo_of(model, MatricesOnly(model.parameters()), **options)


def test_a_seed_optimizer_that_needs_a_closure_is_refused() -> None:
    model = wrapped()
    with pytest.raises(ConfigError, match=r"LBFGS cannot train an isolated seed.*closure"):
        tamiyo_of(model, Adam(model.parameters()), seed_optimizer=LBFGS)


def test_what_is_no_optimizer_is_refused() -> None:
    model = wrapped()
    with pytest.raises(ConfigError, match=r"list_iterator is not an optimizer|given no optimizer"):
        tamiyo_of(model, [])
    with pytest.raises(ConfigError, match=r"ReLU is not an optimizer of torch"):
        tamiyo_of(model, nn.ReLU())


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    model = wrapped()
    optimizer = Adam(model.parameters())
    schedule = schedulers.SequentialLR(
        optimizer,
        [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tamiyo_of(model, optimizer, scheduler=schedule)
