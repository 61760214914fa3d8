"""Learning-rate schedulers of any library: their lists of one value per parameter group.

A scheduler is told of a new parameter group by one more value in each such list. The lists are
found by their length and content, in the scheduler and in everything it wraps, since every library
has names of its own: ``base_lrs`` in torch, ``base_values`` in timm.
"""

import gc
import re
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_INNER = ("optimizer", "base_optimizer", "_base_optimizer", "base")
"""Names under which a wrapper holds the optimizer that does its work."""

_OF_TIME = re.compile(r"milestone|phase|bound|range|sched|epoch|histor|record|_t$|_lens?$|_iters?$")
"""Names of lists with a value for each stretch of time, or with other schedulers."""

_OF_GROUPS = re.compile(r"lr|rate|momentum|beta|decay|lambda|base|value|warmup|group")
"""Names of lists that may hold whole numbers, one per group."""


def shells(optimizer: Any) -> list[Any]:
    """An optimizer in wrappers that share its parameter groups, the outermost first."""
    for name in _INNER:
        inner = getattr(optimizer, name, None)
        if inner is not None and inner is not optimizer and shares_groups(optimizer, inner):
            return [optimizer, *shells(inner)]
    return [optimizer]


def core(optimizer: Any) -> Any:
    """Optimizer inside wrappers that share its parameter groups, as accelerate's; else itself.

    Example:
        >>> import torch
        >>> plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        >>> core(plain) is plain
        True
    """
    return shells(optimizer)[-1]


def shares_groups(optimizer: Any, inner: Any) -> bool:
    """True if both work on one and the same list of parameter groups."""
    groups = getattr(inner, "param_groups", None)
    return groups is not None and groups is getattr(optimizer, "param_groups", None)


def lists_per_group(found: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Lists in schedulers, parts of others included, that hold one value for each group.

    Args:
        found: Schedulers, as ``parts_for`` finds them.
        count: Parameter groups, >= 1.
    """
    # Measured when asked for: SequentialLR shares a list with its part, which must change once.
    seen: set[int] = set()
    for part in found:
        for name, values in list(_attributes(part).items()):
            if id(values) not in seen and _is_per_group(name, values, count):
                seen.add(id(values))
                yield values


def parts_for(scheduler: Any, optimizer: Any) -> list[Any]:
    """Parts of a scheduler that move this optimizer, or do not say which one they move.

    Args:
        scheduler: A scheduler, a wrapper of one, or a list or dictionary of them.
        optimizer: The optimizer, in its wrapper or not.
    """
    found: dict[int, Any] = {}
    _collect(scheduler, found, given=True)
    wanted = core(optimizer)
    return [
        part
        for part in found.values()
        if core(_attributes(part).get("optimizer", wanted)) is wanted
    ]


def live_schedulers(optimizer: Any) -> list[Any]:
    """Schedulers of an optimizer that exist in this process, whoever holds them.

    Only an optimizer that bears the marks of one is searched for: torch's wrap its ``step``, and
    theirs and timm's write ``initial_lr`` into its groups. The search looks at every object that
    Python's garbage collector tracks, which takes a tenth of a second or more.
    """
    wanted = core(optimizer)
    marked = hasattr(wanted.step, "_wrapped_by_lr_sched")
    if not marked and all("initial_lr" not in group for group in wanted.param_groups):
        return []
    kinds: dict[type, bool] = {}
    found = []
    for candidate in gc.get_objects():
        kind = type(candidate)
        if kind not in kinds:
            kinds[kind] = _is_scheduler_class(kind)
        if kinds[kind] and core(_attributes(candidate).get("optimizer")) is wanted:
            found.append(candidate)
    return found


def live_optimizers(parameters: Iterable[nn.Parameter]) -> list[Optimizer]:
    """Optimizers in this process that hold one of these parameters; as slow as the search above."""
    wanted = {id(parameter) for parameter in parameters}
    # By type(): an isinstance() would wake proxies that load what they stand for.
    optimizers = [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
    return [
        optimizer
        for optimizer in optimizers
        if any(
            id(p) in wanted
            for group in getattr(optimizer, "param_groups", ())
            for p in group["params"]
        )
    ]


def _is_scheduler_class(kind: type) -> bool:
    if issubclass(kind, LRScheduler):
        return True
    named = any(c.__name__.endswith(("Scheduler", "LR", "Warmup")) for c in kind.__mro__)
    return named and any(callable(getattr(kind, name, None)) for name in ("step", "dampen"))


def _collect(value: Any, found: dict[int, Any], *, given: bool = False) -> None:
    """Note every scheduler in a value; what the user calls a scheduler is one."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _collect(item, found, given=given)
    elif id(value) not in found and (_may_schedule(value) or (given and _attributes(value))):
        found[id(value)] = value
        for inner in list(_attributes(value).values()):
            _collect(inner, found)


def _may_schedule(value: Any) -> bool:
    """True if it is a scheduler, or a record that holds one, as Lightning's."""
    if isinstance(value, Optimizer | nn.Module | type):
        return False
    attributes = _attributes(value)
    return _is_scheduler_class(type(value)) or "scheduler" in attributes


def _attributes(value: Any) -> Mapping[str, Any]:
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


def _is_per_group(name: str, values: Any, count: int) -> bool:
    if not isinstance(values, list) or len(values) != count or _OF_TIME.search(name.lower()):
        return False
    if all(isinstance(value, int) for value in values):
        return _OF_GROUPS.search(name.lower()) is not None
    return all(_is_setting(value) for value in values)


def _is_setting(value: Any) -> bool:
    if value is None or isinstance(value, Real | Tensor | Mapping | list | tuple):
        return True
    return callable(value) and not _may_schedule(value)
