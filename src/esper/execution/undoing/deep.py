"""Values that are known to change, kept whole: what first appears inside them is put back too."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.errors import ConfigError
from esper.execution.undoing.changes import Kept, Position, keep
from esper.execution.undoing.reachable import (
    MANY,
    MISSING,
    Path,
    follow,
    holds_only_ends,
    is_end,
    named,
    walk,
)

_ENDS = (nn.Module, nn.Parameter, Optimizer, FunctionType, type)
"""Kinds of values that are reached by ways of their own."""
_PASS: ContextVar[dict[int, list[Kept]] | None] = ContextVar("_PASS", default=None)


class Mark(NamedTuple):
    """The way to a value that was seen changing; ``whole`` if what is inside it may change too."""

    path: Path
    whole: bool


def kept_at(root: Any, marks: Iterable[Mark]) -> list[Kept]:
    """Keep what is found at the marks.

    Raises:
        ConfigError: if it is an iterator, or has too many entries: neither can be put back.
    """
    found: list[Kept | None] = []
    for path, whole in marks:
        value = follow(root, path)
        if whole and value is not MISSING:
            kept = kept_whole(value)
            for way, part, one in kept:
                _refuse_if_lost(named((*path, *way)), part, one)
            found += [one for _, _, one in kept]
        elif value is not MISSING:
            found.append(keep(value))
    return [one for one in found if one is not None]


def kept_whole(value: Any) -> list[tuple[Path, Any, Kept | None]]:
    """Keep a value and all that is inside it: path, value, and the value as it was."""
    if is_end(value):
        return []
    if isinstance(value, Tensor) or (isinstance(value, dict | list) and holds_only_ends(value)):
        return [((), value, keep(value))]  # without a walk, which costs more
    return [(path, part, keep(part)) for path, part in walk(value, ends=_ENDS)]


def _refuse_if_lost(name: str, value: Any, kept: Kept | None) -> None:
    if isinstance(kept, Position):
        raise ConfigError(
            f"{name!r} is a {type(value).__name__} by now, which a pass on the side would move and "
            "cannot put back, so there are none; draw in your own loop, and hand what was drawn to "
            "loss_fn in its batch"
        )
    is_container = isinstance(value, Mapping | list | tuple | deque)
    if is_container and len(value) > MANY and not holds_only_ends(value):
        raise ConfigError(too_many(name, value))


def too_many(name: str, value: Any) -> str:
    """Sentence about a container that is too large to be put back."""
    return (
        f"{name!r} has {len(value):,} entries, which change in passes on the side, and those of "
        f"more than {MANY:,} are not put back one by one; keep them in one tensor"
    )


@contextmanager
def undone_at_the_end() -> Iterator[None]:
    """Restore at the end what the functions that are called inside keep for themselves."""
    held: dict[int, list[Kept]] = {}
    token = _PASS.set(held)
    try:
        yield
    finally:
        _PASS.reset(token)
        for kept in held.values():
            for one in kept:
                one.put_back()


def undo_at_the_end(function: Any, kept: list[Kept]) -> None:
    """Restore this when the pass ends, too: its backward may write after the function returned."""
    held = _PASS.get()
    if held is not None:
        held.setdefault(id(function), kept)
