"""Adding parameters to a running optimizer and its scheduler, and removing them."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.training.schedulers import core, lists_per_group, parts_for, shells

SeedOptimizer = Callable[[list[nn.Parameter]], Optimizer]

KERNELS = "esper_kernels"
"""Entry of a parameter group with kernels: names of their parameters, which are its last ones."""

_NOT_SETTINGS = ("params", "param_names", KERNELS)

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
) -> None:
    """Add parameters to a running optimizer: to the group of ``beside``, or to the first.

    So they have its settings at every step, whoever changes them and how. Where `goes_apart` is
    true they get a group of their own with the same settings, and the scheduler is told.

    ``source`` is the optimizer that trained them so far: its state (momenta, step counts) moves
    too, if ``optimizer`` keeps the same kind of state.

    Raises:
        ValueError: if the optimizer holds one of them already.
    """
    inner = core(optimizer)
    source = None if source is None else core(source)
    index = _group_of(inner, beside)
    if goes_apart(optimizer, index, source):
        _add_group(optimizer, named, index, source=source, scheduler=scheduler)
    else:
        _join(inner.param_groups[index], named, inner)
    if source is not None and _keeps_alike(inner, source, [p for _, p in named]):
        for _, parameter in named:
            if parameter in source.state:
                inner.state[parameter] = source.state[parameter]
    _give_first_state(inner, [p for _, p in named if not inner.state.get(p)])


def _give_first_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """State that a class makes as it is constructed, and never later: Adagrad of PyTorch 2.11.

    Without it the next step would raise.
    """
    if not parameters:
        return
    with suppress(ConfigError, RuntimeError):
        fresh = like(optimizer, parameters, beside=parameters)
        made: dict[Tensor, Any] = {p: fresh.state[p] for p in parameters if fresh.state.get(p)}
        optimizer.state.update(made)


def goes_apart(optimizer: Any, index: int = 0, source: Optimizer | None = None) -> bool:
    """True if parameters that join a group later need one of their own.

    They do where a group counts steps, as schedule-free's, since theirs are fewer; and where the
    class keeps books on its groups, as ZeRO and Lookahead.

    Args:
        optimizer: The one that they join, in its wrapper or not.
        index: The group.
        source: The one that trained them, if there is one.
    """
    inner = core(optimizer)
    counted = _progress(inner, inner.param_groups[index], source)
    return bool(counted) or _bookkeeper(optimizer) is not None


def _bookkeeper(optimizer: Any) -> Any:
    """The outermost class that adds groups in a way of its own; ``None`` if there is none.

    A wrapper that has no state of its own only passes them on, as accelerate's.
    """
    *wrappers, inner = shells(optimizer)
    for one in (*(w for w in wrappers if w.state is not inner.state), inner):
        if getattr(type(one), "add_param_group", None) is not Optimizer.add_param_group:
            return one
    return None


def _join(
    group: dict[str, Any], named: Sequence[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> None:
    held = {id(p) for one in optimizer.param_groups for p in one["params"]}
    if any(id(parameter) in held for _, parameter in named):
        raise ValueError("some parameters are in the optimizer already")
    if not named:
        return
    group["params"] += [parameter for _, parameter in named]
    for key in {"param_names", KERNELS} & {*group, KERNELS}:
        group.setdefault(key, []).extend(name for name, _ in named)


def _add_group(
    optimizer: Any,
    named: Sequence[tuple[str, nn.Parameter]],
    index: int,
    *,
    source: Optimizer | None,
    scheduler: Any,
) -> None:
    """Add a group with the settings of group ``index``."""
    inner = core(optimizer)
    template = inner.param_groups[index]
    group = {k: deepcopy(v) for k, v in template.items() if k not in _NOT_SETTINGS}
    group[KERNELS] = [name for name, _ in named]
    if source is not None:
        _same_mode(source, template)
    group |= _progress(inner, template, source)
    names_kept = "param_names" in template
    group["params"] = list(named) if names_kept else [p for _, p in named]
    (_bookkeeper(optimizer) or inner).add_param_group(group)
    for values in lists_per_group(parts_for(scheduler, inner), len(inner.param_groups) - 1):
        values.append(deepcopy(values[index]))


def spans_parameters(optimizer: Optimizer) -> bool:
    """True if a tensor of an optimizer's state is as long as all parameters of a group together."""
    for group in optimizer.param_groups:
        length = sum(parameter.numel() for parameter in group["params"])
        for state in [optimizer.state.get(parameter, {}) for parameter in group["params"][:-1]]:
            lists = [value if isinstance(value, list) else [value] for value in state.values()]
            found = [one.numel() for one in chain(*lists) if isinstance(one, Tensor)]
            if length in found:
                return True
    return False


def discard(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], scheduler: Any = None
) -> None:
    """Remove parameters and their state from a running optimizer and its scheduler.

    Parameters that it does not hold are passed over; those of one whose state spans them all, as
    that of LBFGS does, stay in it without gradients.
    """
    gone = {id(parameter): parameter for parameter in parameters}
    optimizer = core(optimizer)
    if spans_parameters(optimizer):
        for parameter in gone.values():
            parameter.grad = None
    else:
        _remove(optimizer, gone, scheduler)


def _remove(optimizer: Optimizer, gone: Collection[int], scheduler: Any) -> None:
    schedulers = parts_for(scheduler, optimizer)
    for index in reversed(range(len(optimizer.param_groups))):
        group = optimizer.param_groups[index]
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        if len(kept) == len(group["params"]):
            continue
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        if kept or len(optimizer.param_groups) == 1:
            own = len(group["params"]) - len(group.get(KERNELS, ()))
            for key, first in (("params", 0), ("param_names", 0), (KERNELS, own)):
                if key in group:
                    group[key][:] = [group[key][i - first] for i in kept if i >= first]
            if not group.get(KERNELS, True):
                del group[KERNELS]
        else:
            for values in lists_per_group(schedulers, len(optimizer.param_groups)):
                del values[index]
            del optimizer.param_groups[index]


def kernels_in(group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and parameters of the kernels in a parameter group, or in a saved one their numbers."""
    names = group.get(KERNELS, [])
    return list(zip(names, group["params"][len(group["params"]) - len(names) :], strict=True))


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
    grown: Mapping[str, str],
    beside: Callable[[nn.Parameter], Iterable[nn.Parameter]] = lambda _: (),
) -> None:
    """Add what a grown model's optimizer held beyond a fresh one, by parameter name.

    ``grown`` has, for the names of the kernels' parameters, the names that they get here.

    ``beside`` gives parameters of the group that those of a kernel took their settings from; what
    a scheduler does not save, as lambdas, is then that group's again.

    Raises:
        ConfigError: if the groups that it has already hold other parameters than they did.
    """
    found, parameters = group_names(optimizer, model), dict(model.named_parameters())
    own = [[name for name in group if name not in grown] for group in names[: len(found)]]
    if found != own:
        raise ConfigError(
            "the optimizer's parameter groups are not those of the checkpoint; build it over the "
            "same parameters, in the same order, before restoring"
        )
    inner = core(optimizer)
    for group, then in zip(inner.param_groups, names, strict=False):
        _join(group, [(grown[name], parameters[name]) for name in then if name in grown], inner)
    for apart in names[len(found) :]:
        named = [(grown[name], parameters[name]) for name in apart]
        index = _group_of(inner, beside(named[0][1]))
        _add_group(optimizer, named, index, source=None, scheduler=scheduler)


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


def _progress(
    optimizer: Optimizer, template: Mapping[str, Any], source: Optimizer | None
) -> dict[str, Any]:
    """What a group has counted beside its settings, as schedule-free's steps, for new parameters.

    No constructor takes it, and it moved since the start. ``source`` has counted theirs, or nobody.
    """
    fresh, taken = optimizer.defaults, inspect.signature(type(optimizer).__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return {}  # a setting could be among these
    alike = source is not None and type(source) is type(optimizer)
    values = source.param_groups[0] if source is not None and alike else fresh
    known = {*_NOT_SETTINGS, "train_mode", *_OF_SCHEDULERS, *taken}
    return {
        k: deepcopy(values[k])
        for k, v in template.items()
        if k in values and k not in known and (k not in fresh or v != fresh[k])
    }


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
