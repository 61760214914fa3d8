"""Optimizers of PyTorch and of other libraries."""

from collections.abc import Callable
from typing import Any

import schedulefree
import torch
from torch import nn, optim
from torch.optim import SGD, Adam, AdamW

from tests.integration.optimizer_doubles import (
    MatricesOnly,
    SharpnessAware,
    Wrapper,
)
from tests.loops.situations import refused, works
from tests.loops.trial import TRAIN, Net, Trial, adam, loss_fn

_MADE: dict[str, Callable[[Any], Any]] = {
    "Adadelta": lambda ps: optim.Adadelta(ps, lr=1.0),
    "Adafactor": lambda ps: optim.Adafactor(ps, lr=0.02),
    "Adagrad": lambda ps: optim.Adagrad(ps, lr=0.05),
    "Adam": lambda ps: Adam(ps, lr=0.02, amsgrad=True),
    "AdamW": lambda ps: AdamW(ps, lr=0.02, weight_decay=0.1),
    "Adamax": lambda ps: optim.Adamax(ps, lr=0.02),
    "ASGD": lambda ps: optim.ASGD(ps, lr=0.02, t0=3),
    "NAdam": lambda ps: optim.NAdam(ps, lr=0.02),
    "RAdam": lambda ps: optim.RAdam(ps, lr=0.02),
    "RMSprop": lambda ps: optim.RMSprop(ps, lr=0.005, centered=True, momentum=0.5),
    "Rprop": lambda ps: optim.Rprop(ps, lr=0.001),
    "SGD": lambda ps: SGD(ps, lr=0.02, momentum=0.9, nesterov=True),
}


def _of_torch(name: str, make: Callable[[Any], Any]) -> None:
    def loop(trial: Trial) -> None:
        tamiyo = trial.train(Net(), make=lambda model: make(model.parameters()))
        if trial.grown:
            groups = tamiyo.made.training.trainers.optimizers[0].param_groups
            first, *rest = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            assert all(group == first for group in rest)

    loop.__name__, loop.__doc__ = name.lower(), f"The optimizer is `torch.optim.{name}`."
    works(loop)


for _name, _make in _MADE.items():
    _of_torch(_name, _make)


@works
def fused(trial: Trial) -> None:
    """The optimizer is fused: `AdamW(..., fused=True)`."""
    trial.train(Net(), make=lambda m: AdamW(m.parameters(), lr=0.02, fused=True))


@works
def foreach(trial: Trial) -> None:
    """The optimizer works on lists of tensors: `SGD(..., foreach=True)`."""
    trial.train(Net(), make=lambda m: SGD(m.parameters(), lr=0.02, foreach=True))


@works
def rate_in_a_tensor(trial: Trial) -> None:
    """The learning rate is a tensor: `Adam(..., lr=torch.tensor(0.02))`."""
    trial.train(Net(), make=lambda m: Adam(m.parameters(), lr=torch.tensor(0.02)))


@works
def named_parameters(trial: Trial) -> None:
    """The optimizer is made of `model.named_parameters()`."""
    trial.train(Net(), make=lambda m: Adam(m.named_parameters(), lr=0.02))


def decayed(model: nn.Module) -> AdamW:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.02)


@works
def groups_with_and_without_decay(trial: Trial) -> None:
    """Weights have decay and biases have none; so have those of a kernel."""
    tamiyo = trial.train(Net(nn.BatchNorm1d(8)), make=decayed)
    if trial.grown:
        for group in tamiyo.made.training.trainers.optimizers[0].param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


@works
def a_rate_for_each_layer(trial: Trial) -> None:
    """Each layer has a group and a rate of its own, and a kernel has that of its layer."""

    def make(model: Any) -> SGD:
        groups = [{"params": model.fc1.parameters(), "lr": 0.01}]
        return SGD([*groups, {"params": model.fc2.parameters(), "lr": 0.05}], lr=1.0)

    tamiyo = trial.train(Net(), ["fc2"], make=make)
    if trial.grown:
        _, *rest = tamiyo.made.training.trainers.optimizers[0].param_groups
        assert {group["lr"] for group in rest} == {0.05}


def several(trial: Trial, layers: list[str], *makes: Callable[[Any], Any]) -> Any:
    """The loop of several optimizers."""
    model = trial.wrap(Net(), layers)
    optimizers = [make(model) for make in makes]
    tamiyo = trial.tamiyo(model, optimizers)
    for epoch in trial.epochs:
        for batch in TRAIN:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    return optimizers


@works
def two_optimizers(trial: Trial) -> None:
    """Body and head have optimizers of their own: `Tamiyo(model, [body, head], ...)`."""
    body, head = several(
        trial,
        ["fc2"],
        lambda m: SGD(m.fc1.parameters(), lr=0.001),
        lambda m: Adam(m.fc2.parameters(), lr=0.02),
    )
    if trial.grown:
        assert len(body.param_groups) == 1
        assert {group["lr"] for group in head.param_groups} == {0.02}


@works
def matrices_beside_another(trial: Trial) -> None:
    """An optimizer of matrices alone, as Muon, trains the weights, and AdamW the biases."""
    matrices, vectors = several(
        trial,
        ["fc1"],
        lambda m: MatricesOnly([p for p in m.parameters() if p.ndim == 2]),
        lambda m: AdamW([p for p in m.parameters() if p.ndim != 2], lr=0.01),
    )
    assert {p.ndim for group in matrices.param_groups for p in group["params"]} == {2}
    assert {p.ndim for group in vectors.param_groups for p in group["params"]} == {1}


@works
def muon_beside_another(trial: Trial) -> None:
    """`torch.optim.Muon` trains the weights, and AdamW the biases."""
    several(
        trial,
        ["fc1"],
        lambda m: optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=0.02),
        lambda m: AdamW([p for p in m.parameters() if p.ndim != 2], lr=0.01),
    )


@works
def schedule_free(trial: Trial) -> None:
    """The optimizer is schedule-free: `train()` before an epoch, `eval()` before its end."""
    model = trial.wrap(Net())
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        optimizer.train()
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        optimizer.eval()
        tamiyo.on_epoch_end(epoch)


@works
def sharpness_aware(trial: Trial) -> None:
    """The optimizer takes two steps a batch, as SAM."""
    model = trial.wrap(Net())
    optimizer = SharpnessAware(model.parameters(), SGD, lr=0.02, momentum=0.9)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            loss_fn(model, batch).mean().backward()
            optimizer.first_step()
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.second_step()
            optimizer.zero_grad()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def wrapped_optimizer(trial: Trial) -> None:
    """The optimizer is in a wrapper, as accelerate's and Lightning's."""
    trial.train(Net(), make=lambda m: Wrapper(adam(m)))


@works
def with_closure(trial: Trial) -> None:
    """The optimizer is stepped with a closure: `optimizer.step(closure)`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:

            def closure(batch: Any = batch) -> float:
                optimizer.zero_grad()
                loss = loss_fn(model, batch).mean()
                loss.backward()
                return float(loss.detach())

            optimizer.step(closure)
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


class OddSGD(SGD):
    """Cannot be made from the settings of its groups."""

    def __init__(self, params: Any, speed: float) -> None:
        super().__init__(params, lr=speed)


@works
def seed_optimizer(trial: Trial) -> None:
    """The optimizer cannot be made again from its settings, and `seed_optimizer` is given."""
    trial.train(
        Net(),
        make=lambda m: OddSGD(m.parameters(), 0.02),
        seed_optimizer=lambda parameters: OddSGD(parameters, 0.02),
    )


@refused(
    "cannot make a OddSGD for a seed from the settings []: OddSGD.__init__() missing 1 "
    "required positional argument: 'speed'. Pass seed_optimizer=lambda params: ..."
)
def optimizer_of_its_own_kind(trial: Trial) -> None:
    """The optimizer cannot be made again from its settings."""
    trial.train(Net(), make=lambda m: OddSGD(m.parameters(), 0.02))


@refused(
    "layer 'fc1': LBFGS cannot train a kernel's parameters of 1 axis, which join it when the "
    "kernel is blended in: RuntimeError: The size of tensor a (4) must match the size of tensor b "
    "(2) at non-singleton dimension 0. A seed_optimizer alone does not help; train the model with "
    "AdamW or SGD, or pass such an optimizer too: Tamiyo(model, [optimizer, other], ...)"
)
def lbfgs(trial: Trial) -> None:
    """The optimizer is `torch.optim.LBFGS`."""
    trial.train(Net(), make=lambda m: optim.LBFGS(m.parameters()))


@refused(
    "layer 'fc1': SparseAdam cannot train a kernel's parameters of 1 axis, which join it "
    "when the kernel is blended in: RuntimeError: SparseAdam does not support dense "
    "gradients, please consider Adam instead. A seed_optimizer alone does not help; train "
    "the model with AdamW or SGD, or pass such an optimizer too: Tamiyo(model, [optimizer, "
    "other], ...)"
)
def sparse_adam(trial: Trial) -> None:
    """The optimizer is `torch.optim.SparseAdam`."""
    trial.train(Net(), make=lambda m: optim.SparseAdam(m.parameters()))


@refused(
    "layer 'fc1': Muon cannot train a kernel's parameters of 1 axis, which join it when the "
    "kernel is blended in: Muon only supports 2D parameters whereas we found a parameter "
    "with size: torch.Size([2]). A seed_optimizer alone does not help; train the model with "
    "AdamW or SGD, or pass such an optimizer too: Tamiyo(model, [optimizer, other], ...)"
)
def matrices_alone(trial: Trial) -> None:
    """`torch.optim.Muon` is the only optimizer, of a model without biases."""
    model = Net()
    model.fc1.register_parameter("bias", None)
    model.fc2.register_parameter("bias", None)
    trial.train(model, make=lambda m: optim.Muon(m.parameters(), lr=0.02))


@refused(
    "layer 'fc2' is trained by another optimizer, Adam, that Tamiyo was not given: its "
    "kernels would learn at another layer's rate. Pass all optimizers, Tamiyo(model, "
    "[optimizer, other], ...), or freeze the layer with requires_grad_(False) if that one "
    "is done with it"
)
def optimizer_that_was_not_given(trial: Trial) -> None:
    """A second optimizer trains the wrapped layer, and Tamiyo got the first."""
    model: Any = trial.wrap(Net(), ["fc2"])
    body, head = SGD(model.fc1.parameters(), 0.001), Adam(model.fc2.parameters(), 0.02)
    trial.tamiyo(model, body)
    head.step()


@refused(
    "Adam trains no parameter of the model: it was made for another one, or for a copy. Make it "
    "over this model's parameters, or freeze the model with requires_grad_(False) if kernels "
    "alone are to learn"
)
def optimizer_of_another_model(trial: Trial) -> None:
    """The optimizer was made of another model's parameters, as before a `deepcopy`."""
    trial.tamiyo(trial.wrap(Net()), adam(Net()))


@refused(
    "function is not an optimizer of torch, nor a wrapper of one; pass the optimizer that "
    "trains the model, or a list of them"
)
def no_optimizer(trial: Trial) -> None:
    """The optimizer is a function of the user's."""
    trial.tamiyo(trial.wrap(Net()), lambda: None)
