"""State of modules that is neither mode nor buffer: attributes, generators, written parameters."""

import random  # noqa: TID251 (only to put the user's state back)
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import is_
from typing import Any, final
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn

Undo = Callable[[], object]

_PYTORCHS = frozenset(vars(nn.Module()))
_WRITERS: WeakSet[nn.Module] = WeakSet()
"""Modules whose forward was seen writing into their parameters, as a codebook's."""

_SEEN: WeakKeyDictionary[nn.Module, tuple[int, ...]] = WeakKeyDictionary()
"""Versions of the frozen parameters of modules at the last pass on the side."""

_LONG = 1000
_FIXED = (bool, int, float, str, nn.Parameter, type(None))
_DRAWS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (int, float, complex, str, bytes, Tensor, np.ndarray, list, tuple, dict, set, deque)


@final
class Attributes:
    """Attributes of modules, and parameters of those that write into them, to be put back.

    Numbers, tensors, arrays, containers, random generators and objects that hold nothing but these
    are restored; what other objects hold inside is not.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Esper's own modules look after themselves.
        own = [module for module in modules if not _is_espers(module)]
        self._held = [(module, _attributes(module)) for module in own]
        held = [value for _, attributes in self._held for value in attributes.values()]
        values = [value for value in held if not isinstance(value, _FIXED)]
        self._undo = [undo for value in values for undo in _undos(value)]
        self._written = Parameters(m for m in own if m in _WRITERS or _has_moved(m))

    def put_back(self) -> None:
        """Restore everything, in place."""
        for module, held in self._held:
            now = vars(module)
            for name in [n for n in now if n not in _PYTORCHS and n not in held]:
                del now[name]
            for name, value in held.items():
                if now.get(name, module) is not value:
                    now[name] = value
        for undo in self._undo:
            undo()
        self._written.put_back()


@final
class Parameters:
    """Values of the parameters of modules."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held = [
            (module, name, p, p.detach().clone())
            for module in modules
            for name, p in module._parameters.items()
            if p is not None
        ]

    def written(self) -> Iterator[nn.Module]:
        """Modules whose parameters were written or replaced."""
        for module, name, p, value in self._held:
            if module._parameters.get(name) is not p or _differ(p, value):
                yield module

    def put_back(self) -> None:
        """Restore the values, in place."""
        for module, name, p, value in self._held:
            if module._parameters.get(name, module) is not p:
                module._parameters[name] = p
            if _differ(p, value):
                p.data.copy_(value)


def mark_writers(modules: Iterable[nn.Module]) -> None:
    """Keep the parameters of these modules in every pass on the side from now on."""
    _WRITERS.update(modules)


def _is_espers(module: nn.Module) -> bool:
    # PyTorch gives a parametrized layer a class of its own, below the layer's.
    return any(kind.__module__.startswith("esper.") for kind in type(module).__mro__)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _PYTORCHS}


def _undos(value: Any, depth: int = 3) -> Iterator[Undo]:
    """Functions that restore the inside of a value, and of what it holds, if it can change."""
    if isinstance(value, _FIXED):
        return
    held: Collection[Any] = ()
    if isinstance(value, Tensor):
        kept = value.detach().clone()
        yield lambda: _differ(value, kept) and value.data.copy_(kept)
    elif isinstance(value, np.ndarray):
        numbers = value.copy()
        yield lambda: np.copyto(value, numbers)
    elif isinstance(value, tuple):
        held = value
    elif isinstance(value, list | deque):
        held = items = list(value)
        yield lambda: _identical(value, items) or _refill(value, value.extend, items)
    elif isinstance(value, set):
        members = value.copy()
        yield lambda: value == members or _refill(value, value.update, members)
    elif isinstance(value, dict) or _is_record(value):
        entries = value if isinstance(value, dict) else vars(value)
        content = dict(entries)
        held = content.values()
        yield lambda: _same_entries(entries, content) or _refill(entries, entries.update, content)
    else:
        yield from _undo_draws(value)
    # What is long is data: its items are not looked into.
    if depth and len(held) <= _LONG:
        for part in held:
            yield from _undos(part, depth - 1)


def _refill(container: Any, fill: Callable[[Any], object], content: Any) -> object:
    container.clear()
    return fill(content)


def _identical(found: Collection[Any], items: Collection[Any]) -> bool:
    return len(found) == len(items) and all(map(is_, found, items))


def _same_entries(found: dict[Any, Any], content: dict[Any, Any]) -> bool:
    return list(found) == list(content) and _identical(found.values(), content.values())


def _is_record(value: Any) -> bool:
    """Whether an object holds plain values alone, as a meter or a namespace; no locks, no files."""
    held = getattr(value, "__dict__", None)
    known = (*_PLAIN, *_DRAWS)
    return (
        isinstance(held, dict)
        and not isinstance(value, nn.Module | type)
        and not callable(value)
        and all(part is None or isinstance(part, known) for part in held.values())
    )


def _undo_draws(value: Any) -> Iterator[Undo]:
    if isinstance(value, torch.Generator):
        drawn = value.get_state()
        yield lambda: value.set_state(drawn)
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        yield lambda: setattr(value.bit_generator, "state", bits)
    elif isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        yield lambda: value.set_state(legacy)
    elif isinstance(value, random.Random):
        state = value.getstate()
        yield lambda: value.setstate(state)


def version(tensor: Tensor) -> int:
    """Counter of in-place writes into a tensor; -1 for one that has none, of inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def _differ(tensor: Tensor, kept: Tensor) -> bool:
    # By value: what is written through ``.data`` has no version.
    return tensor.shape != kept.shape or not torch.equal(tensor, kept)


def _has_moved(module: nn.Module) -> bool:
    """Whether a frozen parameter was written since the last pass on the side: by forward, maybe."""
    frozen = [p for p in module._parameters.values() if p is not None and not p.requires_grad]
    if not frozen:
        return False
    before, now = _SEEN.get(module), tuple(map(version, frozen))
    _SEEN[module] = now
    return before is not None and before != now
