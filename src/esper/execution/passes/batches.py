"""Batches on the side: the user's functions get copies, so that what they do to one is undone.

Containers are copied each time, which costs next to nothing; tensors only for a function that was
seen writing into them.
"""

import copy
import logging
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError
from esper.execution.undoing.changes import equal_bits, keep
from esper.execution.undoing.deep import Mark, kept_at, undo_at_the_end
from esper.execution.undoing.module_state import Reached

logger = logging.getLogger(__name__)

_PLAIN = (str, bytes, int, float, bool, complex, type(None))


@final
class OnCopies:
    """A function of the user's that takes the model and a batch, called with copies of the batch.

    Until `settle` it gets copies of the tensors too, and is watched. What it keeps for itself, in
    its closure, its globals or its object, is put back where `undo` says that it changes.

    Args:
        function: The user's.
        name: Its name in messages.

    Attributes:
        writes: True if it was seen writing into the tensors of a batch.
        changes: True if it was seen taking entries out of a batch, or putting others in.
    """

    def __init__(self, function: Callable[[nn.Module, Any], Any], name: str) -> None:
        if not callable(function):
            raise ConfigError(
                f"{name} is {function!r}; give a function of the model and a batch, which returns "
                "one value per example, shape (B,)"
            )
        self.function = function
        self.name = name
        self.writes = self.changes = False
        self._settled = self._whole = False
        self._marks: list[Mark] = []

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Call the function with a copy of ``batch``."""
        kept = kept_at(self.function, self._marks)
        undo_at_the_end(self, kept)
        given = self._copy(batch)
        tensors = list(tensors_in(given))
        before = [version_of(tensor) for tensor in tensors]
        values = [] if self._settled else [keep(tensor) for tensor in tensors]
        keys = _keys(given)
        whole = None if self._settled else Reached([batch])
        try:
            return self.function(model, given)
        finally:
            for one in kept:
                one.put_back()
            written = any(version_of(t) != v for t, v in zip(tensors, before, strict=True))
            written |= any(value is not None and value.changed() for value in values)
            written |= not self._settled and _replaced(given, batch)
            self.changes |= _keys(given) != keys
            if written and self._settled and not self.writes:
                logger.warning("%s writes into its batch: it gets copies from now on", self.name)
            if whole is not None and whole.changed():  # past the copy, by a way of its own
                whole.put_back()
                self._whole = written = True
            self.writes |= written

    def undo(self, marks: Iterable[Mark]) -> None:
        """Put back from now on, after every call, what the function keeps at these marks."""
        self._marks += [mark for mark in marks if mark not in self._marks]

    def _copy(self, batch: Any) -> Any:
        if not self._whole:
            return copied(batch, tensors=self.writes or not self._settled)
        try:
            return copy.deepcopy(batch)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"{self.name} changes its batch, a {type(batch).__name__} that cannot be copied "
                f"({error}), so passes on the side would change it; let it work on a copy"
            ) from error

    def settle(self) -> None:
        """From now on copy tensors only if the function was seen writing; say what was seen."""
        self._settled = True
        if self.writes or self.changes:
            logger.warning(
                "%s %s its batch: passes on the side get copies; if your own loop calls it with "
                "the batch that it hands to on_batch_end, let it call it with a copy",
                self.name,
                "writes into" if self.writes else "takes entries out of",
            )


def copied(batch: Any, *, tensors: bool = False) -> Any:
    """Copy of a batch: its containers, however nested, and if wished its tensors.

    A kind of container that cannot be copied is handed on as it is.

    Example:
        >>> batch = {"x": [1, 2], "y": 3}
        >>> copied(batch).pop("y"), sorted(batch)
        (3, ['x', 'y'])
    """
    if isinstance(batch, _PLAIN):
        return batch
    if isinstance(batch, Tensor):
        return batch.clone() if tensors else batch
    if isinstance(batch, np.ndarray):
        return batch.copy()
    if isinstance(batch, tuple):
        parts = [copied(part, tensors=tensors) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else _same_type(batch, parts)
    return _copied_object(batch, tensors)


def _copied_object(batch: Any, tensors: bool) -> Any:
    if isinstance(batch, Mapping) and not isinstance(batch, dict | UserDict):
        new = batch.copy() if hasattr(batch, "copy") else batch
    elif isinstance(batch, dict | list | UserDict) or is_dataclass(batch) or _is_record(batch):
        new = _shallow(batch)
    else:
        return batch
    if new is batch:
        return batch
    for key, part in _entries(new):
        replacement = copied(part, tensors=tensors)
        if replacement is not part:
            _put(new, key, replacement)
    return new


def _shallow(batch: Any) -> Any:
    try:
        return copy.copy(batch)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # it does not want to be copied
        return batch


def _is_record(batch: Any) -> bool:
    """True for an object that holds tensors as attributes, as a batch of a graph library."""
    held = getattr(batch, "__dict__", {})
    return not isinstance(batch, nn.Module | type) and any(
        isinstance(part, Tensor | dict | list | tuple) for part in held.values()
    )


def _entries(batch: Any) -> list[tuple[Any, Any]]:
    if isinstance(batch, Mapping):
        return list(batch.items())
    if isinstance(batch, list):
        return list(enumerate(batch))
    return list(getattr(batch, "__dict__", {}).items())


def _put(batch: Any, key: Any, part: Any) -> None:
    if isinstance(batch, Mapping | list):
        batch[key] = part  # type: ignore[index]
    else:
        batch.__dict__[key] = part


def _same_type(batch: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    return tuple(parts) if type(batch) is tuple else type(batch)(parts)


def name_of(function: Callable[..., Any]) -> str:
    """Name of a function of the user's in messages."""
    return function.name if isinstance(function, OnCopies) else "loss_fn"


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Tensors of a batch, however nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple):
        for part in batch:
            yield from tensors_in(part)
    elif isinstance(batch, Mapping | list) or is_dataclass(batch) or _is_record(batch):
        for _, part in _entries(batch):
            yield from tensors_in(part)


def addresses(batch: Any) -> tuple[tuple[Any, ...], ...]:
    """Addresses and shapes of the tensors of a batch; equal for equal memory."""
    return tuple(
        sorted(
            (tensor.data_ptr(), *tensor.shape)
            for tensor in tensors_in(batch)
            if tensor.layout is torch.strided and not tensor.is_nested and tensor.numel()
        )
    )


def version_of(tensor: Tensor) -> int:
    """Number of writes into a tensor's memory; -1 where none are counted, in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def _replaced(given: Any, batch: Any) -> bool:
    """True if a copy of a batch holds other values by now, on whatever device."""
    now, before = list(tensors_in(given)), list(tensors_in(batch))
    return len(now) == len(before) and not all(
        equal_bits(a.detach().cpu(), b.detach().cpu()) for a, b in zip(now, before, strict=True)
    )


def _keys(batch: Any) -> list[str]:
    """Names of the entries of a batch, one level deep."""
    if isinstance(batch, (tuple, Tensor, *_PLAIN)):
        return []
    return sorted(str(key) for key, _ in _entries(batch))
