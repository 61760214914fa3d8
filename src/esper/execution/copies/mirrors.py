"""Lists and dictionaries that the user pairs with the model's parameters: they grow with it.

Averages of weights, anchors, importances and masks in a plain dictionary, by name, or in a list, by
position, are what many loops keep. When a kernel comes or goes, these containers in the loop
follow: a dictionary with the names of the parameters, or of the state's numbers, and no others; a
list of the model's own parameters, or of references to them; a list of other tensors of their
shapes. Where that may be chance or a record (a short list, one in a history, a whole state dict),
it follows only if its values were seen moving, as an average's do. Parameter groups of
optimizers do not belong to these. Where a kernel is merged into parameters, its values are merged
into theirs, in a dictionary for some parameters too.
"""

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from types import FrameType
from typing import Any, NamedTuple, final
from weakref import ref

import torch
from torch import Tensor, nn

from esper.execution.copies.followers import take_in
from esper.execution.kernel import Join
from esper.execution.topology import KEY
from esper.execution.undoing.reachable import Found, Path, is_of_a_library, variables_of, walk

logger = logging.getLogger(__name__)


class Own(NamedTuple):
    """A tensor of the model, and the shape that it had."""

    tensor: Tensor
    shape: torch.Size


class Table(NamedTuple):
    """Tensors by name that a container may have one for each of; of the loose ones of any shape.

    Or, ``partly``, a dictionary for some.
    """

    owns: dict[str, Own]
    loose: frozenset[str] = frozenset()
    partly: bool = False


_KINDS = dict, OrderedDict, list
_FEWEST, _MANY = 2, 4
"""Tensors of the smallest container that can be told from any other: if its values move; else."""
_ALIKE = 0.5
"""Cosine above which values resemble the parameters, as an average of them does."""


@final
class Mirrors:
    """Containers in the user's loop that mirror the parameters of a model.

    Args:
        model: The model.
        joined: What was merged since it was called last, in order.
    """

    def __init__(self, model: nn.Module, joined: Callable[[], Sequence[Join]]) -> None:
        self.model = model
        self.joined = joined
        self._known: list[Table] = []
        self._still: list[tuple[Any, list[float]]] | None = None
        self._moving: list[Any] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Let what mirrors the model's parameters follow the growth that happens inside."""
        self._known = _tables(self.model)
        if self._still is None:
            self._watch(_containers(self._known))
            for path, value in walk(_variables()):
                take_in(value, str(path[-1][1]) if path else "")
        yield
        self.follow()

    def follow(self) -> None:
        """Let it follow the growth since the last time."""
        joins, before = self.joined(), self._known
        self._known = after = _tables(self.model)
        if any(map(_differ, before, after)):
            found = _containers([*before, *after])
            with torch.no_grad():
                self._follow(found, before, after, joins)
            self._watch(found)

    def _watch(self, found: Sequence[Found]) -> None:
        """Note the values of everything that may be an average."""
        self._still = [
            (held, _fingerprints(held))
            for _, held in found
            if any(_mirrors(held, table) and not _is_own(held, table) for table in self._known)
        ]

    def _follow(
        self,
        found: Sequence[Found],
        before: list[Table],
        after: list[Table],
        joins: Sequence[Join],
    ) -> None:
        moved = [held for held, was in self._still or () if _fingerprints(held) != was]
        self._moving += moved
        moving = set(map(id, self._moving))
        for path, held in found:
            for old, new in zip(before, after, strict=True):
                if not _differ(old, new) or not _mirrors(held, old):
                    continue
                if id(held) in moving or _is_own(held, old) or _is_sure(held, old, path):
                    _mirror(held, old, new, joins)
                    name = type(held).__name__
                    logger.info("a %s of %d tensors follows the parameters", name, len(held))
                    break


def _tables(model: nn.Module) -> list[Table]:
    """Parameters, those that train, matrices, numbers of the state, all state, some parameters."""
    parameters = {name: Own(p, p.shape) for name, p in model.named_parameters()}
    trained = {name: own for name, own in parameters.items() if own.tensor.requires_grad}
    state = model.state_dict(keep_vars=True).items()
    tensors = {name: Own(t, t.shape) for name, t in state if isinstance(t, Tensor)}
    floats = {name: own for name, own in tensors.items() if own.tensor.is_floating_point()}
    return [
        Table(parameters),
        Table(trained),
        Table({name: own for name, own in parameters.items() if own.tensor.ndim > 1}),
        Table({name: own for name, own in trained.items() if own.tensor.ndim > 1}),
        Table(floats),
        Table(tensors, frozenset(tensors.keys() - floats.keys())),
        Table(parameters, partly=True),
    ]


def _differ(old: Table, new: Table) -> bool:
    """True if a kernel came or went, or was merged."""
    return _shapes(old) != _shapes(new)


def _shapes(table: Table) -> dict[str, torch.Size]:
    return {name: own.shape for name, own in table.owns.items() if name not in table.loose}


def _containers(tables: list[Table]) -> list[Found]:
    """Containers in the user's loop that have, for each entry of a table, a tensor of its shape.

    Looked for in the variables of the user's functions that are being called, and in what is
    reached from them, but not in optimizers.
    """
    ours = {id(table.owns) for table in tables}
    found = (one for one in walk(_variables()) if type(one.value) in _KINDS)
    alike = (one for one in found if any(_mirrors(one.value, table) for table in tables))
    return [one for one in alike if id(one.value) not in ours]


def _variables() -> list[dict[str, Any]]:
    """Local variables of the user's functions among the callers, up to the outermost."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        own = frame.f_globals.get("__name__", "").startswith("esper.")
        if not own and not is_of_a_library(frame.f_code.co_filename):
            found.append(variables_of(frame))
        frame = frame.f_back
    return found


def _mirrors(held: Any, table: Table) -> bool:
    """True if a container has, for each entry of a table, a tensor of its shape."""
    named = isinstance(held, dict)
    if len(held) < _FEWEST or not (_is_keyed(held, table) if named else _is_as_long(held, table)):
        return False
    return all(
        (value is not None and (name in table.loose or value.shape == own.shape))
        or value is own.tensor
        for name, own, value in _entries(held, table)
    )


def _is_keyed(held: dict[Any, Any], table: Table) -> bool:
    names = table.owns.keys()
    return held.keys() < names if table.partly else held.keys() == names


def _is_as_long(held: list[Any], table: Table) -> bool:
    return len(held) == len(table.owns) and not (table.loose or table.partly)


def _entries(held: Any, table: Table) -> Iterator[tuple[str, Own, Tensor | None]]:
    """Names, the model's tensors and those of a container that mirrors them."""
    names = [name for name in table.owns if name in held] if table.partly else list(table.owns)
    values = [held[name] for name in names] if isinstance(held, dict) else held
    for name, value in zip(names, values, strict=True):
        yield name, table.owns[name], _tensor(value)


def _is_own(held: Any, table: Table) -> bool:
    """True if a list holds the very parameters of a table."""
    return isinstance(held, list) and all(v is own.tensor for _, own, v in _entries(held, table))


def _is_sure(held: Any, table: Table, path: Path) -> bool:
    """True if a container that does not move mirrors a table by no chance, and is no record.

    A checkpoint is one, and so is a list in a list or by number: the values at some time.
    """
    if isinstance(held, dict):
        return not (table.loose or hasattr(held, "_metadata"))  # which state_dict() gives
    if isinstance(path[-1][1], int):
        return False
    kinds = {value.dtype == own.tensor.dtype or value.dtype is torch.bool
             for _, own, value in _entries(held, table) if value is not None}  # fmt: skip
    return kinds == {True} and len(held) >= _MANY


def _mirror(held: Any, old: Table, new: Table, joins: Sequence[Join]) -> None:
    """Write one value for each new name; a value that was there stays with its parameter."""
    named = held if isinstance(held, dict) else dict(zip(old.owns, held, strict=True))
    values = {name: named[name] for name, *_ in _entries(held, old)}
    loose = {name: values.pop(name) for name in old.loose}
    by_tensor = {id(old.owns[name].tensor): value for name, value in values.items()}
    (first_name, first), *_ = values.items()
    first_own = old.owns[first_name].tensor
    like = _likeness(values, old.owns) if isinstance(first, Tensor) else 0.0

    def value_of(tensor: Tensor) -> Any:
        if id(tensor) in by_tensor:
            return by_tensor[id(tensor)]
        return _entry(tensor, first, first_own, like)

    for join in joins:
        value = by_tensor.get(id(join.host))
        if isinstance(value, Tensor) and value is not join.host:
            value.data = join.whole(value.data, value_of(join.piece).data)
    wanted = {
        n: own for n, own in new.owns.items() if not new.partly or id(own.tensor) in by_tensor
    }
    entries = {name: value_of(own.tensor) for name, own in wanted.items()}
    entries |= {name: new.owns[name].tensor.clone() for name in new.loose}
    entries |= {n: v for n, v in loose.items() if n in entries and not n.endswith(KEY)}
    held.clear()
    held.update(entries) if isinstance(held, dict) else held.extend(entries.values())


def _entry(own: Tensor, first: Any, first_own: Tensor, like: float | None) -> Any:
    """Entry of a new kernel: the parameter itself, or a tensor of its values, or all alike."""
    if not isinstance(first, Tensor):
        return ref(own)
    if first is first_own:
        return own
    copy = own.detach().clone() if like is None else torch.full_like(own.detach(), like)
    copy = copy.to(first.device, first.dtype)
    return nn.Parameter(copy, first.requires_grad) if isinstance(first, nn.Parameter) else copy


def _likeness(values: Mapping[str, Tensor], owns: Mapping[str, Own]) -> float | None:
    """Value of new entries: ``None`` for the parameter's own, 1 for a mask, or 0."""
    if _resemble(values, owns):
        return None
    masks = all(bool(((value == 0) | (value == 1)).all()) for value in values.values())
    return float(masks and any(bool(value.any()) for value in values.values()))


def _resemble(values: Mapping[str, Tensor], owns: Mapping[str, Own]) -> bool:
    pairs = [
        (value.detach(), owns[name].tensor.detach())
        for name, value in values.items()
        if owns[name].tensor.shape == owns[name].shape  # no kernel was merged into it
    ]
    if not pairs:
        return False
    ours, theirs = (
        torch.cat([t.flatten().double().cpu() for t in tensors])
        for tensors in zip(*pairs, strict=True)
    )
    # Squares, as importances of weights, are never below zero.
    return bool(ours.min() < 0 and torch.cosine_similarity(ours, theirs, dim=0) > _ALIKE)


def _fingerprints(held: Any) -> list[float]:
    values = map(_tensor, held.values() if isinstance(held, dict) else held)
    return [nan if value is None else float(value.detach().double().sum()) for value in values]


def _tensor(value: Any) -> Tensor | None:
    found = value() if isinstance(value, ref) else value
    return found if isinstance(found, Tensor) else None
