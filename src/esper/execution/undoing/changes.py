"""One value that a pass may change inside: kept as it was, compared, put back."""

import itertools
import operator
import random  # noqa: TID251 (only to put the user's state back)
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from types import FunctionType, GeneratorType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.execution.undoing.reachable import (
    ENDS,
    MISSING,
    PYTORCHS,
    Step,
    attributes_of,
    is_a_librarys,
    is_draws,
    of_the_user,
    shared_by_class,
    state_of_class,
    variables_named,
    variables_of,
)

_BIG = 2**24
"""Elements above which a tensor outside the model is not copied."""


class Kept(ABC):
    """A value as it was; ``restorable`` is false for what cannot be put back."""

    restorable = True

    @abstractmethod
    def changed(self) -> bool:
        """True if the value is no longer what it was."""

    @abstractmethod
    def put_back(self) -> None:
        """Restore the value, in place."""

    def parts(self) -> list[Step] | None:
        """Steps to what changed; ``None`` if that may be anything inside the value."""
        return None


def keep(value: Any) -> Kept | None:
    """Keep the inside of a value; ``None`` if it has none that can change."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return None
    if is_draws(value):
        return _Draws(value)
    if isinstance(value, FunctionType):
        return _Scope(value) if of_the_user(value) else None
    if isinstance(value, type):
        return None if is_a_librarys(value) else _Class(value)
    kind = next((k for types, k in _KINDS if isinstance(value, types)), None)
    if kind is not None:
        return kind(value)
    return Attributes(value) if attributes_of(value) or hasattr(value, "__dict__") else None


def same(a: Any, b: Any) -> bool:
    """True if two values are one object, or equal plain values."""
    if a is b:
        return True
    return type(a) is type(b) and isinstance(a, ENDS) and bool(a == b)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """True if two tensors hold the same values, NaN equal to NaN; sparse and nested ones too."""
    if a.layout != b.layout or a.is_nested != b.is_nested or a.dtype != b.dtype:
        return False
    if a.is_nested or a.layout != torch.strided:
        ours, theirs = _dense_parts(a), _dense_parts(b)
        whole = a.is_nested or a.shape == b.shape
        return whole and len(ours) == len(theirs) and all(map(equal_bits, ours, theirs))
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _dense_parts(tensor: Tensor) -> Sequence[Tensor]:
    """Dense tensors that a sparse or nested one consists of."""
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout is torch.sparse_coo:  # coalesced or not
        return tensor._indices(), tensor._values()
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def restore(tensor: Tensor, value: Tensor) -> None:
    """Write a value into a tensor, in place, without a trace in autograd."""
    alike = tensor.is_nested or (tensor.shape == value.shape and tensor.dtype == value.dtype)
    if alike and tensor.layout is not torch.sparse_coo:  # whose `.data` has values of its own
        tensor.data.copy_(value)
    else:
        tensor.data = value.clone()


@final
class _Array(Kept):
    def __init__(self, value: Any) -> None:
        self._value = value
        is_tensor = isinstance(value, Tensor)
        size = value.numel() if is_tensor else value.size
        plain = not is_tensor or _is_plain(value)
        self.restorable = plain and size <= _BIG
        self._kept: Any = None
        if self.restorable:
            self._kept = value.detach().clone() if is_tensor else value.copy()

    @override
    def changed(self) -> bool:
        if self._kept is None:
            return False
        if isinstance(self._value, Tensor):
            return not equal_bits(self._value.detach(), self._kept)
        return bool(self._value.tobytes() != self._kept.tobytes())

    @override
    def put_back(self) -> None:
        if not self.changed():
            return
        if isinstance(self._value, Tensor):
            restore(self._value, self._kept)
        else:
            self._value[...] = self._kept


def _is_plain(tensor: Tensor) -> bool:
    special = tensor.is_nested or tensor.is_inference() or tensor.is_meta
    return tensor.layout is torch.strided and not special


@final
class _Draws(Kept):
    def __init__(self, value: Any) -> None:
        self._value = value
        self._state = _state_of(value)

    @override
    def changed(self) -> bool:
        now = _state_of(self._value)
        if isinstance(now, Tensor):
            return not torch.equal(now, self._state)
        return repr(now) != repr(self._state)

    @override
    def put_back(self) -> None:
        if isinstance(self._value, np.random.Generator):
            self._value.bit_generator.state = self._state
        elif isinstance(self._value, random.Random):
            self._value.setstate(self._state)
        else:
            self._value.set_state(self._state)


def _state_of(draws: Any) -> Any:
    if isinstance(draws, np.random.Generator):
        return draws.bit_generator.state
    return draws.getstate() if isinstance(draws, random.Random) else draws.get_state()


@final
class _Items(Kept):
    def __init__(self, value: MutableMapping[Any, Any]) -> None:
        self._value, self._kept = value, dict(value.items())

    @override
    def changed(self) -> bool:
        return list(self._value) != list(self._kept) or _differ(self._value, self._kept)

    @override
    def put_back(self) -> None:
        if self.changed():
            self._value.clear()
            self._value.update(self._kept)


@final
class _Elements(Kept):
    def __init__(self, value: Any) -> None:
        self._value, self._kept = value, list(value)

    @override
    def changed(self) -> bool:
        if isinstance(self._value, set):
            return self._value != set(self._kept)
        pairs = zip(self._value, self._kept, strict=False)
        return len(self._value) != len(self._kept) or not all(same(*pair) for pair in pairs)

    @override
    def put_back(self) -> None:
        if self.changed():
            self._value.clear()
            extend = self._value.update if isinstance(self._value, set) else self._value.extend
            extend(self._kept)


@final
class Attributes(Kept):
    """Attributes of an object, and those that it shares with others of its class."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._kept, self._shared = self._now(), shared_by_class(value)

    def values(self) -> Iterable[Any]:
        """Values of the attributes, as they were."""
        return self._kept.values()

    def _now(self) -> dict[str, Any]:
        if isinstance(self._value, nn.Module):
            found = vars(self._value)
            return {name: part for name, part in found.items() if name not in PYTORCHS}
        return attributes_of(self._value)

    @override
    def changed(self) -> bool:
        now = self._now()
        return (
            now.keys() != self._kept.keys()
            or _differ(now, self._kept)
            or (bool(self._shared) and _differ(vars(type(self._value)), self._shared))
        )

    @override
    def parts(self) -> list[Step]:
        shared = vars(type(self._value))
        classes = [n for n, v in self._shared.items() if not same(shared.get(n, MISSING), v)]
        own = _differing(self._now(), self._kept)
        return [*(("attribute", name) for name in own), *(("class", name) for name in classes)]

    @override
    def put_back(self) -> None:
        if not self.changed():
            return
        # Past the class's own __setattr__ and __delattr__, as a module's.
        now = self._now()
        for name in now.keys() - self._kept.keys():
            object.__delattr__(self._value, name)
        for name, part in self._kept.items():
            if not same(now.get(name, MISSING), part):
                object.__setattr__(self._value, name, part)
        for name, part in self._shared.items():
            if not same(vars(type(self._value)).get(name, MISSING), part):
                setattr(type(self._value), name, part)


@final
class _Class(Kept):
    """Attributes of a class of the user's that are no methods."""

    def __init__(self, value: type) -> None:
        self._value, self._kept = value, state_of_class(value)

    @override
    def changed(self) -> bool:
        return bool(self.parts())

    @override
    def parts(self) -> list[Step]:
        return [("attribute", n) for n in _differing(state_of_class(self._value), self._kept)]

    @override
    def put_back(self) -> None:
        for _, name in self.parts():
            # Past the metaclass's own __setattr__ and __delattr__.
            if name in self._kept:
                type.__setattr__(self._value, str(name), self._kept[str(name)])
            else:
                type.__delattr__(self._value, str(name))


@final
class _Scope(Kept):
    """Variables of a function that outlive it: closure, globals, attributes."""

    def __init__(self, value: FunctionType) -> None:
        self._attributes, self._held = vars(value), dict(vars(value))
        self._kept = variables_named(value)
        names = value.__code__.co_freevars
        cells = zip(names, value.__closure__ or (), strict=True)
        self._cells = [(name, cell, _content(cell)) for name, cell in cells]

    @override
    def changed(self) -> bool:
        return bool(self.parts())

    @override
    def parts(self) -> list[Step]:
        cells = [("cell", n) for n, cell, held in self._cells if not same(_content(cell), held)]
        moved = [
            ("global", n)
            for n, (space, name, v) in self._kept.items()
            if not same(space.get(name, MISSING), v)
        ]
        return [
            *cells,
            *moved,
            *(("attribute", n) for n in _differing(self._attributes, self._held)),
        ]

    @override
    def put_back(self) -> None:
        for _, cell, held in self._cells:
            if held is not MISSING and not same(_content(cell), held):
                cell.cell_contents = held
        for space, name, held in self._kept.values():
            if not same(space.get(name, MISSING), held):
                space[name] = held
        if _differing(self._attributes, self._held):
            self._attributes.clear()
            self._attributes.update(self._held)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return MISSING


@final
class Position(Kept):
    """How far an iterator has come; there is no way back."""

    restorable = False

    def __init__(self, value: Iterator[Any]) -> None:
        self._value, self._kept = value, _position(value)

    @override
    def changed(self) -> bool:
        return _position(self._value) != self._kept

    @override
    def put_back(self) -> None:
        return None


def _position(iterator: Iterator[Any]) -> str:
    if isinstance(iterator, itertools.count):
        return repr(iterator)
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame
        held = {} if frame is None else {n: id(v) for n, v in variables_of(frame).items()}
        return f"{None if frame is None else frame.f_lasti} {held}"
    try:
        return str(operator.length_hint(iterator, -1))
    except TypeError:
        return ""


def _differing(now: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Names that came, went, or have other values."""
    return [
        name
        for name in (*kept, *(now.keys() - kept.keys()))
        if not same(now.get(name, MISSING), kept.get(name, MISSING))
    ]


def _differ(now: Mapping[str, Any], kept: Mapping[Any, Any]) -> bool:
    return any(not same(now.get(key, MISSING), value) for key, value in kept.items())


_KINDS: tuple[tuple[Any, Callable[[Any], Kept]], ...] = (
    (Tensor | np.ndarray, _Array),
    (MutableMapping, _Items),
    (list | deque | set, _Elements),
    (Iterator, Position),
)
