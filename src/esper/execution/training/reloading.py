"""States of optimizers that are loaded in mid-run, from before or after a growth.

Parameter groups bear the names of the kernels' parameters in them, so those of a state are matched
by name: a parameter that the state does not have keeps what it has, one that the model does not
have is passed over. The user's own parameters are matched by their order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.execution.seeded import Seeded
from esper.execution.training.optimizers import KERNELS, kernels_in


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
    groups, saved = optimizer.param_groups, list(state["param_groups"])
    if list(map(_key, groups)) == list(map(_key, saved)):
        return None
    own = [group for group in saved if _own(group)]
    if [_own(group) for group in own] != [_own(group) for group in groups if _own(group)]:
        return None
    present = optimizer.state_dict()
    kernels = _by_name(present) | _by_name(state)
    apart = {_key(group)[0]: group for group in saved if not _own(group)}
    joined: dict[str, Any] = {"state": {}, "param_groups": []}
    for group, packed in zip(groups, present["param_groups"], strict=True):
        source = own.pop(0) if _own(group) else apart.get(_key(group)[0], packed)
        held = [(number, state["state"]) for number in source["params"][: _own(group)]]
        held += [kernels[name] for name, _ in kernels_in(group)]
        _add(joined, {**source, KERNELS: group.get(KERNELS)}, held)
    return {**state, **joined}


def kernel_parameters(layers: Iterable[Seeded]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the kernels in the outputs of layers, by their names in an optimizer."""
    for layer in layers:
        for part in layer.contributions():
            yield from part.kernel.named_parameters(prefix=part.kernel_id)


_Held = tuple[Any, Mapping[Any, Any]]
"""Number of a parameter, and the states, by number, that it belongs to."""


def _by_name(state: Mapping[str, Any]) -> dict[str, _Held]:
    """Every kernel's parameter in a saved state."""
    return {
        name: (number, state["state"])
        for group in state["param_groups"]
        for name, number in kernels_in(group)
    }


def _add(joined: dict[str, Any], group: Mapping[str, Any], held: Sequence[_Held]) -> None:
    """Add a group with the states of its parameters, numbered anew, to a packed state."""
    first = sum(len(before["params"]) for before in joined["param_groups"])
    for number, (old, source) in enumerate(held, start=first):
        if old in source:
            joined["state"][number] = source[old]
    numbers = list(range(first, first + len(held)))
    kept = {key: value for key, value in group.items() if key != KERNELS or value is not None}
    joined["param_groups"].append({**kept, "params": numbers})


def _own(group: Mapping[str, Any]) -> int:
    """Number of the user's own parameters in a group."""
    return len(group["params"]) - len(group.get(KERNELS, ()))


def _key(group: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    return tuple(group.get(KERNELS, ())), _own(group)
