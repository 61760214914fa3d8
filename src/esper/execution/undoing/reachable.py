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
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
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
"""Types that nothing else is reached from and that do not change inside; the user's classes do."""

_PLAIN = frozenset({str, bytes, bool, int, float, complex, type(None)})

MANY = 1000
"""Items of a container above which it is data, whose items are not looked at one by one."""
_LIMIT = 50_000
"""Values after which a walk ends: it has got into an application."""

_OF_A_SNAPSHOT = 3
"""References to a dictionary of local variables that the user's code does not use."""

_STATE = {"collections", "random", "types", "argparse", "functools", "dataclasses"}
_FOREIGN = (sys.stdlib_module_names - _STATE) | {"esper"}
"""Packages whose objects look after themselves, as threads, queues, files and loggers."""
_LIBRARY_ROOTS = sys.stdlib_module_names | {"esper", "torch", "numpy"}
_ENTRIES = ("__call__", "forward", "backward", "setup_context")
"""Methods that are called without being named."""
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})

PYTORCHS = frozenset(vars(nn.Module()))
"""Attributes that every module has; hooks among them hold functions of the user's."""
_HELD_BY_THE_MODEL = frozenset({"_parameters", "_buffers", "_modules", "training"})


class Variable(NamedTuple):
    """A variable of a module: the module's namespace, its name there, its value."""

    space: dict[str, Any]
    name: str
    value: Any


class Found(NamedTuple):
    """A value and the way to it."""

    path: Path
    value: Any


def walk(
    root: Any,
    *,
    own: frozenset[int] = frozenset(),
    data: bool = False,
    ends: tuple[type, ...] = (),
    many: int = MANY,
) -> Iterator[Found]:
    """Everything that is reached from a root, each value once; the root is the first.

    Args:
        root: A module of the model, a function, a batch or a source of batches.
        own: Ids of the modules of the model, which are roots of their own.
        data: True for a source of batches: it is looked into, and tensors are left out.
        ends: Kinds of values that are left out.
        many: Items of a container above which they are left out.
    """
    seen: set[int] = set()
    queue = deque([Found((), root)])
    alive = []  # an id is that of one object only while the object lives
    while queue and len(seen) < _LIMIT:
        found = queue.popleft()
        value = found.value
        if is_end(value) or id(value) in seen or (found.path and id(value) in own):
            continue
        if isinstance(value, ends) or (data and isinstance(value, Tensor | np.ndarray)):
            continue
        seen.add(id(value))
        alive.append(value)
        yield found
        for step, child in _children(value, own, data=data, many=many):
            if not is_end(child):
                queue.append(Found((*found.path, step), child))


def follow(root: Any, path: Path) -> Any:
    """Value at the end of a path; ``MISSING`` if the path has ended before."""
    for step in path:
        root = _part(root, step)
        if root is MISSING:
            break
    return root


def _part(value: Any, step: Step) -> Any:
    kind, key = step
    if kind == "item" and isinstance(value, Mapping):
        return value.get(key, MISSING)  # which makes no entry in a defaultdict
    held = getattr(value, "__dict__", {})
    if kind == "attribute" and key in held:
        return held[key]
    return dict(_children(value, frozenset(), data=True, many=sys.maxsize)).get(step, MISSING)


def is_end(value: Any) -> bool:
    """True if nothing is reached from a value, and it does not change inside."""
    return isinstance(value, ENDS) and not (isinstance(value, type) and not is_a_librarys(value))


def holds_only_ends(value: Any) -> bool:
    """True if the items of a container are numbers, text and the like."""
    items = value.values() if isinstance(value, Mapping) else value
    return set(map(type, items)) <= _PLAIN


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
    return file.startswith((*_LIBRARIES, "<frozen")) or "/site-packages/" in file


def variables_named(function: FunctionType) -> dict[str, Variable]:
    """Variables that a function names: globals, and those of the user's modules among them."""
    names = _names(function.__code__)
    found: dict[str, Variable] = {}
    spaces = [("", function.__globals__)]
    seen = {id(function.__globals__)}
    while spaces:
        prefix, space = spaces.pop()
        for name in names:
            value = space.get(name, MISSING)
            if value is MISSING:
                continue
            found[prefix + name] = Variable(space, name, value)
            if isinstance(value, ModuleType) and id(vars(value)) not in seen:
                seen.add(id(vars(value)))
                if _is_the_users(value):
                    spaces.append((f"{prefix}{name}.", vars(value)))
    return found


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """Names of globals and attributes in a function, and in functions inside it too."""
    names: set[str] = set()
    codes = [code]
    while codes:
        one = codes.pop()
        names.update(one.co_names)
        codes += [c for c in one.co_consts if isinstance(c, CodeType)]
    return tuple(sorted(names))


def _is_the_users(module: ModuleType) -> bool:
    root = module.__name__.partition(".")[0]
    file = getattr(module, "__file__", None)
    return bool(file) and root not in _LIBRARY_ROOTS and not is_of_a_library(str(file))


def state_of_class(kind: type) -> dict[str, Any]:
    """Attributes of a class that are no methods and belong to the user."""
    return {
        name: held
        for name, held in vars(kind).items()
        if not name.startswith("__") and not hasattr(type(held), "__get__")
    }


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
    if is_a_librarys(kind):
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
def is_a_librarys(kind: type) -> bool:
    """True if a class is not the user's own."""
    module = sys.modules.get(kind.__module__)
    file = str(getattr(module, "__file__", ""))
    root = kind.__module__.partition(".")[0]
    return root in _LIBRARY_ROOTS or _is_foreign(kind) or is_of_a_library(file)


def _children(
    value: Any,
    own: frozenset[int],
    *,
    data: bool,
    many: int = MANY,
) -> Iterator[tuple[Step, Any]]:
    if isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        if not is_a_librarys(value):
            yield from _of_class(value)
    elif isinstance(value, MethodType):
        yield from ((("function", "self"), value.__self__), (("function", "func"), value.__func__))
    elif isinstance(value, partial):
        parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
        yield from ((("function", name), part) for name, part in parts.items())
    elif isinstance(value, Mapping | list | tuple | deque):
        if len(value) <= many and not holds_only_ends(value):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            yield from ((("item", key), part) for key, part in items)
    elif not isinstance(value, Tensor | np.ndarray | Set) and not _is_foreign(type(value), data):
        yield from _of_object(value, own)


def _of_function(function: FunctionType) -> Iterator[tuple[Step, Any]]:
    if not of_the_user(function):  # a decorator's, as of torch.no_grad
        if hasattr(function, "__wrapped__"):
            yield ("attribute", "__wrapped__"), function.__wrapped__
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield ("cell", name), cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for name, variable in variables_named(function).items():
        yield ("global", name), variable.value
    for name, value in vars(function).items():
        yield ("attribute", name), value
    for number, value in enumerate(function.__defaults__ or ()):
        yield ("default", number), value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield ("default", name), value


def _of_class(kind: type) -> Iterator[tuple[Step, Any]]:
    for name, value in state_of_class(kind).items():
        yield ("attribute", name), value
    for base in kind.__bases__:
        yield ("base", base.__name__), base
    names, seen = list(_ENTRIES), set()
    while names:
        name = names.pop()
        method = vars(kind).get(name)
        method = getattr(method, "__func__", method)
        if name not in seen and isinstance(method, FunctionType):
            yield ("method", name), method
            names += _names(method.__code__)
        seen.add(name)


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
    kind: type = type(value)
    if not is_a_librarys(kind):
        yield ("type", kind.__name__), kind


def _is_foreign(kind: type, data: bool = False) -> bool:
    root = kind.__module__.partition(".")[0]
    if root in _FOREIGN and kind is not partial and not issubclass(kind, nn.Module):
        return True
    if issubclass(kind, Optimizer):
        return True
    return not data and issubclass(kind, Dataset | DataLoader | Sampler)
