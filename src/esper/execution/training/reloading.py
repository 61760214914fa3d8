"""States of optimizers and schedulers that are loaded in mid-run, from before or after a growth.

The groups of kernels bear the name of their kernel, so those of a state are matched by it: a group
that the state does not have keeps what it has, one that the model does not have is passed over.
The user's own groups are matched by their order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from esper.execution.kasmina_layer import KasminaLayer
from esper.execution.training.optimizers import KERNEL
from esper.execution.training.schedulers import names_per_group, parts_for


def keep_linked(optimizer: Optimizer, link: Callable[[], Callable[[], None] | None]) -> list[Any]:
    """Bring the groups up to date before every step and load; match what is loaded to them.

    Args:
        optimizer: The optimizer; one that knows no hooks, as some wrappers, is left alone.
        link: Weak reference to the function that brings the groups up to date.

    Returns:
        Handles of the hooks.
    """

    def before(*_: Any) -> None:
        update = link()
        if update is not None:
            update()

    def match(_: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        before()
        return None if link() is None else matched(optimizer, state)

    with suppress(AttributeError):  # made without Optimizer.__init__
        return [
            optimizer.register_load_state_dict_pre_hook(match),
            optimizer.register_step_pre_hook(before),
        ]
    return []


def matched(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """State for the groups that an optimizer has; ``None`` if it may be loaded as it is.

    It may as well if the user's own groups are not as many, or as large: PyTorch says so.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    if list(map(_key, groups)) == list(map(_key, saved)):
        return None
    own = [group for group in saved if KERNEL not in group]
    wanted = [group for group in groups if KERNEL not in group]
    if list(map(_size, own)) != list(map(_size, wanted)):
        return None
    of_kernels = {_key(group): group for group in saved if KERNEL in group}
    present = optimizer.state_dict()
    parts = []
    for group, packed in zip(groups, present["param_groups"], strict=True):
        if KERNEL not in group:
            parts.append((own.pop(0), state["state"]))
        elif _key(group) in of_kernels:
            parts.append((of_kernels[_key(group)], state["state"]))
        else:
            parts.append((packed, present["state"]))
    return {**state, **_joined(parts)}


def _joined(parts: Iterable[tuple[Mapping[str, Any], Mapping[Any, Any]]]) -> dict[str, Any]:
    """One packed state of groups that come from several, their parameters numbered anew."""
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    number = 0
    for group, source in parts:
        first = number
        for old in group["params"]:
            if old in source:
                states[number] = source[old]
            number += 1
        groups.append({**group, "params": list(range(first, number))})
    return {"state": states, "param_groups": groups}


@final
class Lists:
    """Lists of schedulers that hold one value for each group of an optimizer."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.optimizers = optimizers
        self._found: list[list[tuple[Any, str]]] = [[] for _ in optimizers]

    def note(self, schedulers: Sequence[Any]) -> None:
        """Find the lists; they have as many values as there are groups now."""
        self._found = [
            names_per_group(parts_for(schedulers, one), len(one.param_groups))
            for one in self.optimizers
        ]

    def mend(self, home: Callable[[nn.Parameter], tuple[int, int] | None]) -> None:
        """Give every list one value for each group again, if a state was loaded into it.

        Args:
            home: Gives for a kernel's parameter the optimizer and the group that it is like.
        """
        for number, (optimizer, found) in enumerate(zip(self.optimizers, self._found, strict=True)):
            if not found:  # as without a scheduler; this is asked after every batch
                continue
            groups = optimizer.param_groups
            lists = [getattr(part, name, None) for part, name in found]
            own = sum(KERNEL not in group for group in groups)
            # Groups of the user's that came later have no known place in the list.
            if any(KERNEL in group for group in groups[:own]):
                continue
            for values in lists:
                if isinstance(values, list) and own <= len(values) != len(groups):
                    likes = [home(group["params"][0]) for group in groups[own:]]
                    more = [like[1] if like and like[0] == number else 0 for like in likes]
                    values[own:] = [deepcopy(values[index]) for index in more]


def parameter_name(layers: Iterable[KasminaLayer], parameter: nn.Parameter) -> str:
    """Name that a kernel's parameter has in an optimizer; empty if it is in no layer's output."""
    for layer in layers:
        for part in layer.contributions():
            for name, p in part.kernel.named_parameters(prefix=part.kernel_id):
                if p is parameter:
                    return name
    return ""


def _key(group: Mapping[str, Any]) -> tuple[str, int]:
    return str(group.get(KERNEL, "")), _size(group)


def _size(group: Mapping[str, Any]) -> int:
    return len(group["params"])
