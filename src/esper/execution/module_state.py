"""State of modules that is neither mode nor buffer: attributes, generators, written parameters."""

import random  # noqa: TID251 (only to put the user's state back)
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

_PYTORCHS = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WRITERS: WeakSet[nn.Module] = WeakSet()
"""Modules whose forward was seen writing into their parameters, as a codebook's."""


@final
class Attributes:
    """Attributes of modules, and parameters of those that write into them, to be put back.

    Numbers, tensors, lists, dictionaries, sets and random generators are restored; what other
    objects hold inside is not. Hooks that were registered meanwhile are removed: a model that
    registers its own in its first pass would else do so again.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Esper's own modules look after themselves.
        own = [m for m in modules if not type(m).__module__.startswith("esper.")]
        self._held = [(module, _attributes(module)) for module in own]
        values = [value for _, held in self._held for value in held.values()]
        self._hooks = [(t, set(t)) for m in own for t in map(vars(m).get, _HOOKS) if t is not None]
        self._undo = [undo for undo in map(_undo, values) if undo is not None]
        self._written = Parameters(module for module in own if module in _WRITERS)

    def put_back(self) -> None:
        """Restore everything, in place."""
        for module, held in self._held:
            now = vars(module)
            for name in [n for n in now if n not in _PYTORCHS and n not in held]:
                del now[name]
            for name, value in held.items():
                if now.get(name, module) is not value:
                    now[name] = value
        for table, keys in self._hooks:
            for key in table.keys() - keys:
                del table[key]
        for undo in self._undo:
            undo()
        self._written.put_back()


@final
class Parameters:
    """Values of the parameters of modules."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held = [
            (module, name, p, p._version, p.detach().clone())
            for module in modules
            for name, p in module._parameters.items()
            if p is not None
        ]

    def written(self) -> Iterator[nn.Module]:
        """Modules whose parameters were written or replaced."""
        for module, name, p, version, _ in self._held:
            if p._version != version or module._parameters.get(name) is not p:
                yield module

    def put_back(self) -> None:
        """Restore the values, in place."""
        for module, name, p, version, value in self._held:
            if module._parameters.get(name, module) is not p:
                module._parameters[name] = p
            if p._version != version:
                p.data.copy_(value)


def mark_writers(modules: Iterable[nn.Module]) -> None:
    """Keep the parameters of these modules in every pass on the side from now on."""
    _WRITERS.update(modules)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _PYTORCHS}


def _undo(value: Any) -> Callable[[], object] | None:
    """Function that restores the inside of a value, if it can change."""
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return None
    if isinstance(value, Tensor):
        kept, version = value.detach().clone(), value._version
        return lambda: value._version != version and value.data.copy_(kept)
    if isinstance(value, list | deque):
        items = list(value)
        return lambda: (value.clear(), value.extend(items))
    if isinstance(value, dict | set):
        content = value.copy()
        return lambda: (value.clear(), value.update(content))
    return _undo_draws(value)


def _undo_draws(value: Any) -> Callable[[], object] | None:
    if isinstance(value, torch.Generator):
        drawn = value.get_state()
        return lambda: value.set_state(drawn)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    return None
