"""What a function or a module reaches: attributes, items, closures, globals that it names.

A path leads to a value by steps, so that the value can be found again in a later pass, whatever
object it is then.
"""

import inspect
import random  # noqa: TID251 (only to know the user's generators)
import sys
import sysconfig
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Set
from functools import lru_cache, partial
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

Step = tuple[str, Hashable]
Path = tuple[Step, ...]

MISSING = object()
ENDS = (str, bytes, bool, int, float, complex, type(None), type, ModuleType)
"""What nothing else is reached from, and what does not change inside."""

_MANY = 1000
"""Items of a container above which it is data, whose items are not looked at one by one."""
_LIMIT = 50_000
"""Values after which a walk ends: it has got into an application."""

_OF_A_SNAPSHOT = 3
"""References to a dictionary of local variables that the user's code does not use."""

_STATE = {"collections", "random", "types", "argparse", "functools", "dataclasses"}
_FOREIGN = (sys.stdlib_module_names - _STATE) | {"esper"}
"""Packages whose objects look after themselves, as threads, queues, files and loggers."""
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})

PYTORCHS = frozenset(vars(nn.Module()))
"""Attributes that every module has; hooks among them hold functions of the user's."""
_HELD_BY_THE_MODEL = frozenset({"_parameters", "_buffers", "_modules", "training"})


class Found(NamedTuple):
    """A value and the way to it."""

    path: Path
    value: Any


def walk(root: Any, *, own: frozenset[int] = frozenset(), data: bool = False) -> Iterator[Found]:
    """Everything that is reached from a root, each value once; the root is the first.

    Args:
        root: A module of the model, a function, a batch or a source of batches.
        own: Ids of the modules of the model, which are roots of their own.
        data: True for a source of batches: it is looked into, and tensors are left out.
    """
    seen: set[int] = set()
    queue = deque([Found((), root)])
    alive = []  # an id is that of one object only while the object lives
    while queue and len(seen) < _LIMIT:
        found = queue.popleft()
        value = found.value
        if isinstance(value, ENDS) or id(value) in seen or (found.path and id(value) in own):
            continue
        if data and isinstance(value, Tensor | np.ndarray):
            continue
        seen.add(id(value))
        alive.append(value)
        yield found
        for step, child in _children(value, own, data=data):
            queue.append(Found((*found.path, step), child))


def follow(root: Any, path: Path) -> Any:
    """Value at the end of a path; ``MISSING`` if the path has ended before."""
    for step in path:
        root = dict(_children(root, frozenset(), data=True, wanted=step)).get(step, MISSING)
        if root is MISSING:
            break
    return root


def named(path: Path) -> str:
    """Path as a user would write it."""
    return ".".join(str(key) for kind, key in path if kind != "function")


def variables_of(frame: FrameType) -> dict[str, Any]:
    """Local variables of a frame, which it does not hold any longer than before."""
    namespace = frame.f_locals
    found = dict(namespace)
    # Before Python 3.13 a function's frame keeps the dictionary that it gave, and all that is in
    # it, until it returns. Referred to by the frame, here and by the call: by no one else.
    is_a_snapshot = isinstance(namespace, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED
    if is_a_snapshot and sys.getrefcount(namespace) <= _OF_A_SNAPSHOT:
        namespace.clear()
    return found


def is_draws(value: Any) -> bool:
    """True if it is a random generator."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return isinstance(value, kinds)


def of_the_user(function: FunctionType) -> bool:
    """True if a function is not a library's."""
    return not is_of_a_library(function.__code__.co_filename)


def is_of_a_library(file: str) -> bool:
    """True if code of this file is installed, and not the user's own."""
    return file.startswith((*_LIBRARIES, "<frozen"))


def globals_of(function: FunctionType) -> dict[str, Any]:
    """Globals that a function names, and functions and comprehensions inside it too."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, type(code))]
    return {n: function.__globals__[n] for n in sorted(names) if n in function.__globals__}


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes of an object: those in its dictionary and in its slots."""
    found = dict(getattr(value, "__dict__", {}))
    kind: type = type(value)
    for name in _slots(kind):
        held = getattr(value, name, MISSING)
        if held is not MISSING:
            found[name] = held
    return found


def shared_by_class(value: Any) -> dict[str, Any]:
    """Values that the user's class of an object holds, as a counter of all instances."""
    kind: type = type(value)
    if _is_of_a_library(kind):
        return {}
    return {
        name: held
        for name, held in vars(kind).items()
        if not name.startswith("__")
        and (isinstance(held, int | float | dict | list | set | Tensor) or is_draws(held))
    }


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[str, ...]:
    named_ = [kind_.__dict__.get("__slots__", ()) for kind_ in kind.__mro__]
    slots = [(one,) if isinstance(one, str) else one for one in named_]
    return tuple(n for one in slots for n in one if n not in ("__dict__", "__weakref__"))


@lru_cache(maxsize=1024)
def _is_of_a_library(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    return _is_foreign(kind) or str(getattr(module, "__file__", "")).startswith(_LIBRARIES)


def _children(
    value: Any, own: frozenset[int], *, data: bool, wanted: Step | None = None
) -> Iterator[tuple[Step, Any]]:
    if isinstance(value, FunctionType):
        if of_the_user(value):
            yield from _of_function(value)
    elif isinstance(value, MethodType):
        yield from ((("function", "self"), value.__self__), (("function", "func"), value.__func__))
    elif isinstance(value, partial):
        parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
        yield from ((("function", name), part) for name, part in parts.items())
    elif isinstance(value, Mapping | list | tuple | deque):
        if wanted is not None or len(value) <= _MANY:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            yield from ((("item", key), part) for key, part in items)
    elif not isinstance(value, Tensor | np.ndarray | Set) and not _is_foreign(type(value), data):
        yield from _of_object(value, own)


def _of_function(function: FunctionType) -> Iterator[tuple[Step, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield ("cell", name), cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for name, value in globals_of(function).items():
        yield ("global", name), value


def _of_object(value: Any, own: frozenset[int]) -> Iterator[tuple[Step, Any]]:
    left_out = _HELD_BY_THE_MODEL if id(value) in own else frozenset()
    hidden = isinstance(value, DataLoader)  # worker processes, and an iterator that they feed
    hooks_only = type(value).__module__.startswith("esper.")
    for name, part in attributes_of(value).items():
        if name in left_out or (hidden and name.startswith("_")):
            continue
        if not hooks_only or name in PYTORCHS:
            yield ("attribute", name), part
    for name, part in shared_by_class(value).items():
        yield ("class", name), part


def _is_foreign(kind: type, data: bool = False) -> bool:
    root = kind.__module__.partition(".")[0]
    if root in _FOREIGN and kind is not partial and not issubclass(kind, nn.Module):
        return True
    if issubclass(kind, Optimizer):
        return True
    return not data and issubclass(kind, Dataset | DataLoader | Sampler)
