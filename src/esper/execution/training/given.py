"""What a user gives as optimizers and schedulers: one, or several."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.training.schedulers import core, shells


def several(optimizer: Any) -> list[Any]:
    """Optimizers in what the user gave: one, or a list, tuple or dictionary of them.

    Raises:
        ConfigError: if there is none, or something else.
    """
    found = optimizer.values() if isinstance(optimizer, Mapping) else optimizer
    if not isinstance(found, Iterable):
        found = [found]
    given = list(found)
    if not given:
        raise ConfigError("Tamiyo was given no optimizer; pass the one that trains the model")
    for one in given:
        if not isinstance(core(one), Optimizer):
            raise ConfigError(
                f"{type(one).__name__} is not an optimizer of torch, nor a wrapper of one; pass "
                "the optimizer that trains the model, or a list of them"
            )
        for shell in shells(one):
            if not isinstance(getattr(shell, "state", None), Mapping):
                raise ConfigError(
                    f"{type(shell).__name__} wraps an optimizer and has no attribute state, so "
                    "kernels cannot join it; make it a torch.optim.Optimizer, or let its state be "
                    "that of the optimizer that it wraps"
                )
    return given


def several_schedulers(scheduler: Any) -> list[Any]:
    """Schedulers in what the user gave.

    Raises:
        ConfigError: if one is none.
    """
    found = list(scheduler.values()) if isinstance(scheduler, Mapping) else scheduler
    found = found if isinstance(found, list | tuple) else [found]
    for one in found:
        if isinstance(one, str | Number | type):
            raise ConfigError(
                f"scheduler is {one!r}; pass the learning-rate scheduler of the optimizer, as "
                "torch.optim.lr_scheduler has them, a list of several, or none"
            )
    return [one for one in found if one is not None]


def refuse_strangers(optimizers: Sequence[Optimizer], model: nn.Module) -> None:
    """Refuse optimizers that train nothing of a model that is not frozen.

    Raises:
        ConfigError: if so.
    """
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    wanted = [p for p in model.parameters() if p.requires_grad]
    if held and wanted and not any(id(p) in held for p in wanted):
        raise ConfigError(
            f"{type(optimizers[0]).__name__} trains no parameter of the model: it was made for "
            "another one, or for a copy. Make it over this model's parameters, or freeze the model "
            "with requires_grad_(False) if kernels alone are to learn"
        )
