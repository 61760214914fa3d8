"""Adding parameters to a running optimizer and its scheduler, and removing them."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError

SeedOptimizer = Callable[[list[nn.Parameter]], Optimizer]

# Attributes of schedulers that hold one value per parameter group, in order.
_PER_GROUP = (
    "base_lrs",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "_last_lr",
)


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
    accepted = set(inspect.signature(type(optimizer).__init__).parameters)
    template = optimizer.param_groups[_group_of(optimizer, beside)]
    settings = {k: deepcopy(v) for k, v in template.items() if k in accepted - {"params"}}
    try:
        return type(optimizer)(list(parameters), **settings)
    except (TypeError, ValueError) as error:
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
) -> None:
    """Add a group of parameters to a running optimizer and its scheduler.

    The new group takes its settings (present learning rate, values that schedulers added) from the
    group that holds a parameter of ``beside``, or from the first.

    ``source`` is the optimizer that trained them so far: its state (momenta, step counts) moves
    too, if ``optimizer`` keeps the same kind of state.
    """
    index = _group_of(optimizer, beside)
    template = optimizer.param_groups[index]
    group = {k: deepcopy(v) for k, v in template.items() if k not in ("params", "param_names")}
    names_kept = "param_names" in template
    optimizer.add_param_group(
        {"params": list(named) if names_kept else [p for _, p in named], **group}
    )
    for values in _per_group(scheduler, len(optimizer.param_groups) - 1):
        values.append(deepcopy(values[index]))
    if source is not None and _keeps_alike(optimizer, source, [p for _, p in named]):
        for _, parameter in named:
            if parameter in source.state:
                optimizer.state[parameter] = source.state[parameter]


def discard(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], scheduler: Any = None
) -> None:
    """Remove parameters and their state from a running optimizer and its scheduler.

    Parameters that it does not hold are passed over.
    """
    gone = {id(parameter) for parameter in parameters}
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
            for values in _per_group(scheduler, len(optimizer.param_groups)):
                del values[index]
            del optimizer.param_groups[index]


def group_names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """Parameter names of every group, for checkpoints that do not rely on positions."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "") for p in g["params"]] for g in optimizer.param_groups]


def replay_groups(
    optimizer: Optimizer, model: nn.Module, names: Sequence[Sequence[str]], scheduler: Any = None
) -> None:
    """Add the groups of a grown model's optimizer to a fresh one, by parameter name.

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
        adopt(optimizer, [(name, parameters[name]) for name in group], scheduler=scheduler)


def _keeps_alike(optimizer: Optimizer, source: Optimizer, new: Sequence[nn.Parameter]) -> bool:
    """True if one optimizer can continue the state of the other."""
    theirs = next((set(source.state[p]) for p in new if source.state.get(p)), None)
    ours = next((set(state) for state in optimizer.state.values() if state), None)
    if theirs is None or ours is None:
        return type(source) is type(optimizer)
    return theirs == ours


def _per_group(scheduler: Any, count: int) -> Iterator[list[Any]]:
    """Lists in a scheduler and its parts that hold one value for each of ``count`` groups."""
    # Measured when asked for: SequentialLR shares a list with its part, which must change once.
    for part in _schedulers(scheduler):
        for attribute in _PER_GROUP:
            values = getattr(part, attribute, None)
            if isinstance(values, list) and len(values) == count:
                yield values


def _group_of(optimizer: Optimizer, beside: Iterable[nn.Parameter]) -> int:
    wanted = {id(parameter) for parameter in beside}
    for index, group in enumerate(optimizer.param_groups):
        if any(id(parameter) in wanted for parameter in group["params"]):
            return index
    return 0


def _schedulers(scheduler: Any) -> list[Any]:
    """Scheduler and all its parts."""
    if scheduler is None:
        return []
    parts = getattr(scheduler, "_schedulers", [])
    return [scheduler, *(leaf for part in parts for leaf in _schedulers(part))]
