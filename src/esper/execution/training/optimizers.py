"""Adding parameters to a running optimizer and its scheduler, and removing them."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.training.schedulers import core, lists_per_group, parts_for

SeedOptimizer = Callable[[list[nn.Parameter]], Optimizer]

KERNEL = "esper_kernel"
"""Entry of a parameter group that says whose parameters it holds."""

_NOT_SETTINGS = ("params", "param_names", KERNEL)

_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""Errors of a constructor that is called with what it does not take."""

_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
"""Settings that schedulers write into a group; an optimizer may refuse to be made with them."""


def like(
    optimizer: Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    beside: Iterable[nn.Parameter] = (),
) -> Optimizer:
    """Optimizer of the same class and present settings, for other parameters.

    The settings are those of the group that holds a parameter of ``beside``, or of the first.

    Raises:
        ConfigError: if the class cannot be constructed from its parameter groups' settings.
    """
    optimizer = core(optimizer)
    template = optimizer.param_groups[_group_of(optimizer, beside)]
    settings = {k: deepcopy(v) for k, v in template.items() if k in _accepted(optimizer)}
    new = list(parameters)
    try:
        return type(optimizer)(new, **settings)
    except _REFUSALS as error:
        made = _of_groups(optimizer, new, template)
        if made is not None:
            return made
        raise ConfigError(
            f"cannot make a {type(optimizer).__name__} for a seed from the settings "
            f"{sorted(settings)}: {error}. Pass seed_optimizer=lambda params: ..."
        ) from error


def adopt(
    optimizer: Optimizer,
    named: Sequence[tuple[str, nn.Parameter]],
    *,
    source: Optimizer | None = None,
    scheduler: Any = None,
    beside: Iterable[nn.Parameter] = (),
    kernel: str = "",
) -> None:
    """Add a group of parameters to a running optimizer and its scheduler.

    The new group takes its settings (present learning rate, values that schedulers added) from the
    group that holds a parameter of ``beside``, or from the first.

    ``source`` is the optimizer that trained them so far: its state (momenta, step counts) moves
    too, if ``optimizer`` keeps the same kind of state. ``kernel`` names the group.
    """
    inner = core(optimizer)
    index = _group_of(inner, beside)
    template = inner.param_groups[index]
    group = {k: deepcopy(v) for k, v in template.items() if k not in _NOT_SETTINGS}
    if kernel:
        group[KERNEL] = kernel
    if source is not None:
        source = core(source)
        _same_mode(source, template)
        group |= _progress(inner, source)
    names_kept = "param_names" in template
    inner.add_param_group({"params": list(named) if names_kept else [p for _, p in named], **group})
    for values in lists_per_group(parts_for(scheduler, inner), len(inner.param_groups) - 1):
        values.append(deepcopy(values[index]))
    if source is not None and _keeps_alike(inner, source, [p for _, p in named]):
        for _, parameter in named:
            if parameter in source.state:
                inner.state[parameter] = source.state[parameter]


def discard(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], scheduler: Any = None
) -> None:
    """Remove parameters and their state from a running optimizer and its scheduler.

    Parameters that it does not hold are passed over.
    """
    gone = {id(parameter) for parameter in parameters}
    optimizer = core(optimizer)
    schedulers = parts_for(scheduler, optimizer)
    for index in reversed(range(len(optimizer.param_groups))):
        group = optimizer.param_groups[index]
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        if len(kept) == len(group["params"]):
            continue
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        if kept:
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [group[key][i] for i in kept]
        else:
            for values in lists_per_group(schedulers, len(optimizer.param_groups)):
                del values[index]
            del optimizer.param_groups[index]


def group_names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """Parameter names of every group, for checkpoints that do not rely on positions."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "") for p in g["params"]] for g in optimizer.param_groups]


def replay_groups(
    optimizer: Optimizer,
    model: nn.Module,
    names: Sequence[Sequence[str]],
    scheduler: Any = None,
    *,
    beside: Callable[[nn.Parameter], Iterable[nn.Parameter]] = lambda _: (),
    kernel: Callable[[nn.Parameter], str] = lambda _: "",
) -> None:
    """Add the groups of a grown model's optimizer to a fresh one, by parameter name.

    ``beside`` gives parameters of the group that those of a kernel took their settings from; what
    a scheduler does not save, as lambdas, is then that group's again. ``kernel`` gives the name of
    a kernel's group.

    Raises:
        ConfigError: if the groups that it has already hold other parameters than they did.
    """
    found = group_names(optimizer, model)
    if found != [list(group) for group in names[: len(found)]]:
        raise ConfigError(
            "the optimizer's parameter groups are not those of the checkpoint; build it over the "
            "same parameters, in the same order, before restoring"
        )
    parameters = dict(model.named_parameters())
    missing = [name for group in names[len(found) :] for name in group if name not in parameters]
    if missing:
        raise ConfigError(
            f"the checkpoint's optimizer trained {missing[0]!r}, which the model does not have; "
            "load the model's state dict before its optimizer's"
        )
    for group in names[len(found) :]:
        named = [(name, parameters[name]) for name in group]
        first = named[0][1]
        adopt(optimizer, named, scheduler=scheduler, beside=beside(first), kernel=kernel(first))


def _keeps_alike(optimizer: Optimizer, source: Optimizer, new: Sequence[nn.Parameter]) -> bool:
    """True if one optimizer can continue the state of the other."""
    theirs = next((set(source.state[p]) for p in new if source.state.get(p)), None)
    ours = next((set(state) for state in optimizer.state.values() if state), None)
    if theirs is None or ours is None:
        return type(source) is type(optimizer)
    return theirs == ours


def _accepted(optimizer: Optimizer) -> set[str]:
    """Settings that the class can be constructed with, as far as it names them."""
    return set(inspect.signature(type(optimizer).__init__).parameters) - {"params", "self"}


def _of_groups(
    optimizer: Optimizer, parameters: list[nn.Parameter], template: Mapping[str, Any]
) -> Optimizer | None:
    """The same class from one group that has every setting; for those that want it said there."""
    left_out = (*_NOT_SETTINGS, *_OF_SCHEDULERS)
    group = {k: deepcopy(v) for k, v in template.items() if k not in left_out}
    try:
        return type(optimizer)([{"params": parameters, **group}])  # type: ignore[call-arg]
    except _REFUSALS:
        return None


def _progress(optimizer: Optimizer, source: Optimizer) -> dict[str, Any]:
    """What a group counts beside its settings, as schedule-free's steps: that of the parameters.

    It is what a fresh group has and no constructor takes; ``source`` has counted it, or nobody.
    """
    taken = inspect.signature(type(optimizer).__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return {}  # a setting could be among these
    counted = optimizer.defaults.keys() - _accepted(optimizer) - {"train_mode"}
    values = source.param_groups[0] if type(source) is type(optimizer) else optimizer.defaults
    return {k: deepcopy(values[k]) for k in optimizer.defaults if k in counted and k in values}


def _same_mode(source: Optimizer, template: Mapping[str, Any]) -> None:
    """Switch an optimizer that averages weights, as schedule-free, to the mode of another."""
    if "train_mode" in template and "train_mode" in source.param_groups[0]:
        switch = getattr(source, "train" if template["train_mode"] else "eval", None)
        if callable(switch):
            switch()


def _group_of(optimizer: Optimizer, beside: Iterable[nn.Parameter]) -> int:
    wanted = {id(parameter) for parameter in beside}
    for index, group in enumerate(optimizer.param_groups):
        if any(id(parameter) in wanted for parameter in group["params"]):
            return index
    return 0
