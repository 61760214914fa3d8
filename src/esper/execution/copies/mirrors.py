"""Lists and dictionaries that the user pairs with the model's parameters: they grow with it.

Averages of weights in a plain dictionary, by name, or in a list, by position, are what many loops
keep. When a kernel comes or goes, three kinds of container in the loop follow: a dictionary
with the names of the parameters and no others; a list of the model's own parameters, or of
references to them; a list of other tensors if its values were seen moving since the kernel
germinated, as an average's do and a snapshot's do not. Parameter groups of optimizers do not belong
to these. Where a kernel is merged into parameters, its values are merged into theirs.
"""

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, final
from weakref import ref

import torch
from torch import Tensor, nn

from esper.execution.kernel import Join
from esper.execution.undoing.reachable import is_of_a_library, variables_of, walk

logger = logging.getLogger(__name__)


class Own(NamedTuple):
    """A tensor of the model, and the shape that it had."""

    tensor: Tensor
    shape: torch.Size


Table = dict[str, Own]

_FEWEST = 2
"""Tensors of the smallest container that can be told from any other."""
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
        self._still: list[tuple[list[Any], list[float]]] = []
        self._moving: list[list[Any]] = []

    def watch(self) -> None:
        """Note the values of every list that may be an average: a kernel has germinated."""
        tables = _tables(self.model)
        self._still = [
            (held, list(map(_fingerprint, held)))
            for held in _containers(tables, list)
            if not any(_mirrors(held, table) and _is_own(held, table) for table in tables)
        ]

    @contextmanager
    def following(self) -> Iterator[None]:
        """Let what mirrors the model's parameters follow the growth that happens inside."""
        before = _tables(self.model)
        yield
        joins = self.joined()
        after = _tables(self.model)
        if any(map(_differ, before, after)):
            with torch.no_grad():
                self._follow(before, after, joins)

    def _follow(self, before: list[Table], after: list[Table], joins: Sequence[Join]) -> None:
        moved = [held for held, was in self._still if list(map(_fingerprint, held)) != was]
        self._moving += moved
        moving = set(map(id, self._moving))
        for held in _containers(before, dict, OrderedDict, list):
            for old, new in zip(before, after, strict=True):
                if not _differ(old, new) or not _mirrors(held, old):
                    continue
                if isinstance(held, dict) or id(held) in moving or _is_own(held, old):
                    _mirror(held, old, new, joins)
                    name = type(held).__name__
                    logger.info("a %s of %d tensors follows the parameters", name, len(held))
                    break


def _tables(model: nn.Module) -> list[Table]:
    """Parameters, trainable ones, floating-point state, by name: a container may mirror each."""
    parameters = {name: Own(p, p.shape) for name, p in model.named_parameters()}
    state = model.state_dict(keep_vars=True).items()
    return [
        parameters,
        {name: own for name, own in parameters.items() if own.tensor.requires_grad},
        {n: Own(t, t.shape) for n, t in state if isinstance(t, Tensor) and t.is_floating_point()},
    ]


def _differ(old: Table, new: Table) -> bool:
    """True if a kernel came or went, or was merged."""
    return {n: own.shape for n, own in old.items()} != {n: own.shape for n, own in new.items()}


def _containers(tables: list[Table], *kinds: type) -> list[Any]:
    """Containers in the user's loop that have, for each entry of a table, a tensor of its shape.

    Looked for in the variables of the user's functions that are being called, and in what is
    reached from them, but not in optimizers.
    """
    ours = {id(table) for table in tables}
    found = (value for _, value in walk(_variables()) if type(value) in kinds)
    alike = (held for held in found if any(_mirrors(held, table) for table in tables))
    return [held for held in alike if id(held) not in ours]


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
    if len(held) != len(table) or len(table) < _FEWEST:
        return False
    if isinstance(held, dict) and held.keys() != table.keys():
        return False
    values = [held[name] for name in table] if isinstance(held, dict) else held
    pairs = zip(map(_tensor, values), table.values(), strict=True)
    return all(
        value is own.tensor or (value is not None and value.shape == own.shape)
        for value, own in pairs
    )


def _is_own(held: list[Any], table: Table) -> bool:
    """True if a list holds the very parameters of a table."""
    pairs = zip(held, table.values(), strict=True)
    return all(_tensor(value) is own.tensor for value, own in pairs)


def _mirror(held: Any, old: Table, new: Table, joins: Sequence[Join]) -> None:
    """Write one value for each new name; a value that was there stays with its parameter."""
    values = [held[name] for name in old] if isinstance(held, dict) else list(held)
    by_tensor = {id(own.tensor): value for own, value in zip(old.values(), values, strict=True)}
    first, first_own = values[0], next(iter(old.values())).tensor
    averages = isinstance(first, Tensor) and _resemble(values, old)

    def value_of(tensor: Tensor) -> Any:
        if id(tensor) in by_tensor:
            return by_tensor[id(tensor)]
        return _entry(tensor, first, first_own, averages=averages)

    for join in joins:
        value = by_tensor.get(id(join.host))
        if isinstance(value, Tensor) and value is not join.host:
            value.data = join.whole(value.data, value_of(join.piece).data)
    entries = {name: value_of(own.tensor) for name, own in new.items()}
    held.clear()
    held.update(entries) if isinstance(held, dict) else held.extend(entries.values())


def _entry(own: Tensor, first: Any, first_own: Tensor, *, averages: bool) -> Any:
    """Entry of a new kernel: the parameter itself, or a tensor of its values, or of zeros."""
    if not isinstance(first, Tensor):
        return ref(own)
    if first is first_own:
        return own
    copy = own.detach().clone() if averages else torch.zeros_like(own)
    copy = copy.to(first.device, first.dtype)
    return nn.Parameter(copy, first.requires_grad) if isinstance(first, nn.Parameter) else copy


def _resemble(values: list[Tensor], table: Table) -> bool:
    pairs = [
        (value.detach(), own.tensor.detach())
        for value, own in zip(values, table.values(), strict=True)
        if own.tensor.shape == own.shape  # no kernel was merged into it
    ]
    if not pairs:
        return False
    ours, theirs = (
        torch.cat([t.flatten().double().cpu() for t in tensors])
        for tensors in zip(*pairs, strict=True)
    )
    # Squares, as importances of weights, are never below zero.
    return bool(ours.min() < 0 and torch.cosine_similarity(ours, theirs, dim=0) > _ALIKE)


def _fingerprint(value: Any) -> float:
    found = _tensor(value)
    return float("nan") if found is None else float(found.detach().double().sum())


def _tensor(value: Any) -> Tensor | None:
    found = value() if isinstance(value, ref) else value
    return found if isinstance(found, Tensor) else None
