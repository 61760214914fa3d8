"""Examples of a batch: a copy of the batch with other examples, and the axis that they lie on."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


def chosen(batch: Any, count: int, keep: Sequence[int], *, last: bool = False) -> Any:
    """Copy of a batch of ``count`` examples that has these alone; the batch is not changed.

    Tensors, arrays and lists are found in dictionaries, sequences and attributes. A tensor's
    examples lie on its first axis of that size, or on the last one, so that (T, B) works too.
    What has no such axis stays as it is.
    """
    if isinstance(batch, Tensor | np.ndarray):
        return _chosen_array(batch, count, keep, last=last)
    if isinstance(batch, Mapping):
        made: Any = copy.copy(batch)
        for key, value in batch.items():
            made[key] = chosen(value, count, keep, last=last)
        return made
    if isinstance(batch, list) and len(batch) == count and not _holds(batch, count):
        return [batch[index] for index in keep]
    if isinstance(batch, list | tuple):
        parts = [chosen(value, count, keep, last=last) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    held = getattr(batch, "__dict__", {})
    if any(isinstance(value, Tensor | np.ndarray) for value in held.values()):
        made = copy.copy(batch)
        for name, value in held.items():  # a frozen dataclass too
            object.__setattr__(made, name, chosen(value, count, keep, last=last))
        return made
    return batch


def changed_axes(before: Shape, after: Shape) -> tuple[int, ...]:
    """Axes whose size is another, between two shapes of equal rank."""
    return tuple(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)


def shape_of(value: Any) -> Shape:
    """Shape of a tensor or an array; () of what has none, as a nested tensor."""
    if isinstance(value, Tensor) and value.is_nested:
        return ()
    return tuple(getattr(value, "shape", ()))


def _chosen_array(batch: Any, count: int, keep: Sequence[int], *, last: bool) -> Any:
    if isinstance(batch, Tensor) and batch.is_nested:
        parts = batch.detach().unbind()
        if len(parts) != count:
            return batch
        return torch.nested.as_nested_tensor([parts[index] for index in keep], layout=batch.layout)
    axes = [axis for axis, size in enumerate(batch.shape) if size == count]
    if not axes:
        return batch
    axis = axes[-1 if last else 0]
    if isinstance(batch, np.ndarray):
        return np.take(batch, keep, axis)
    return batch.detach().index_select(axis, torch.tensor(keep, device=batch.device))


def _holds(batch: Sequence[Any], count: int) -> bool:
    """True if parts of the batch have the examples on an axis of their own."""
    return any(count in shape_of(part) for part in batch)
