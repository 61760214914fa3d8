"""Axes of a layer's input: which one has the features, and which ones the layer mixes.

Told by the module's own type; else by calling it on inputs of other extents, of which it refuses
those with another number of features; else by modules of known type inside it and beside it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError, KernelError
from esper.execution.layouts.dry_run import Call, told_by_type
from esper.execution.layouts.examples import Shape, changed_axes
from esper.execution.side_effect_free import side_effect_free

LETTERS = "BTLHWFC"
_MOVED = "its examples have one axis in evaluation and another in training"


def check_layout(layer: str, layout: str) -> str:
    """Return what the user says about a layer's axes, in capitals.

    Raises:
        ConfigError: if it has letters that mean nothing, one twice, or no features.
    """
    letters = layout.upper() if isinstance(layout, str) else ""
    strange = sorted(set(letters) - set(LETTERS))
    if not letters or strange or len(set(letters)) < len(letters):
        raise ConfigError(
            f"layout of layer {layer!r} is {layout!r}; it must have each of its letters once, of "
            "B batch, T time, L length, H height, W width, F features, C channels, as 'TBF'"
        )
    if len(set(letters) & set("FC")) != 1 or "B" not in letters:
        raise ConfigError(
            f"layout of layer {layer!r} is {layout!r}; it must have a B for the batch and one F or "
            "C for the features, as 'TBF' or 'BHWC'"
        )
    return letters


def batch_axis(host: nn.Module, call: Call, resized: Call | None) -> tuple[int | None, str]:
    """Axis of the examples in the input of a layer; or ``None``, and why it is not known.

    ``resized`` is the layer in a pass on another number of examples, if there was one.
    """
    if resized is None:
        told = call.examples if call.examples is not None else _batch_axis_by_type(host, call)
        return told, "" if told is not None else (
            "no batch with one example fewer could be made of the holdout's, so which axis has the "
            "examples is not known"
        )
    pairs = list(zip(call.shapes, resized.shapes, strict=False))
    found = {
        (changed_axes(x, fewer_x), changed_axes(y, fewer_y))
        for (x, y), (fewer_x, fewer_y) in pairs
        if (len(x), len(y)) == (len(fewer_x), len(fewer_y))
    }
    if len(found) == 1:
        axes, written = found.pop()
        if axes == written and len(axes) == 1:
            return (None, _MOVED) if _elsewhere(axes[0], resized.training) else (axes[0], "")
    return None, "no axis of its own has the examples, in every call, in input and output alike"


def _elsewhere(axis: int, training: Sequence[tuple[Shape, Shape]]) -> bool:
    """True if the examples have another axis in training; what is drawn may change further ones."""
    changed = [changed_axes(x, fewer) for x, fewer in training if len(x) == len(fewer)]
    return any(axes and axis not in axes for axes in changed)


def _batch_axis_by_type(host: nn.Module, call: Call) -> int | None:
    if told_by_type(host) == 1 or call.inside == {1}:  # convolutions have the batch first
        return 0
    declared = {
        part.batch_first
        for part in host.modules()
        if isinstance(getattr(part, "batch_first", None), bool)
    }
    return (0 if declared.pop() else 1) if len(declared) == 1 and call.x.ndim == 3 else None


def confirmed(letters: str, host: nn.Module, call: Call, resized: Call | None, *, name: str) -> str:
    """Layout that the user gave a layer, if nothing that was observed contradicts it.

    Raises:
        ConfigError: if something does.
    """
    shape, claim = tuple(call.x.shape), f"layout of layer {name!r} is {letters!r}"
    if len(letters) != len(shape):
        raise ConfigError(f"{claim}, but its input has shape {shape}; give {len(shape)} letters")
    batch = None if resized is None else batch_axis(host, call, resized)[0]
    if batch not in (None, letters.index("B")) and resized is not None:
        raise ConfigError(
            f"{claim}, but axis {batch} has the examples: on a batch of another size its input is "
            f"{resized.shapes[0][0]} and not {shape}; put the B there"
        )
    refused = refused_axes(host, call, letters.index("B"))
    feature = max(letters.find("F"), letters.find("C"))
    if len(refused) == 1 and refused != [feature]:
        raise ConfigError(
            f"{claim}, but axis {refused[0]} of its input, shape {shape}, has the features: the "
            "layer takes no other number of them; put the F or C there"
        )
    return letters


def feature_axis(host: nn.Module, call: Call, batch: int | None, *, name: str) -> int:
    """Axis of the features in the input of a layer.

    Raises:
        KernelError: if nothing tells it.
    """
    rank: int = call.x.ndim
    refused = refused_axes(host, call, batch)
    candidates = refused or [axis for axis in range(rank) if axis != batch]
    if len(candidates) == 1:
        return candidates[0]
    for votes in (call.inside, call.beside):
        found = {vote % rank for vote in votes} & set(candidates)
        if len(found) == 1:
            return found.pop()
    raise KernelError(
        f"which axis of the input of layer {name!r}, shape {tuple(call.x.shape)}, has the features "
        f"cannot be told; say so, as esper.wrap(..., layout={{{name!r}: "
        f"{'BTF' if rank == 3 else 'BHWC'!r}}})"
    )


def refused_axes(host: nn.Module, call: Call, batch: int | None) -> list[int]:
    """Axes at which the layer takes no other extent: that of its features, by type or by trial."""
    told = told_by_type(host)
    if told is not None:
        return [told % call.x.ndim]
    axes = (axis for axis in range(call.x.ndim) if axis != batch)
    return [axis for axis in axes if not _takes_other_extents(host, call, axis)]


def reads_later(host: nn.Module, call: Call, axis: int) -> bool:
    """True if another last element of the axis moves the output at an earlier one."""
    return _moves(host, call, axis, changed=-1)


def reads_earlier(host: nn.Module, call: Call, axis: int) -> bool:
    """True if another first element of the axis moves the output at a later one."""
    return _moves(host, call, axis, changed=0)


def _moves(host: nn.Module, call: Call, axis: int, *, changed: int) -> bool:
    size = call.x.shape[axis]
    other = call.x.clone()
    other.select(axis, changed).mul_(-1).add_(1)
    with suppress(Exception):  # of the user's own module, called alone
        y, moved = (_run(host, x, call.further) for x in (call.x.clone(), other))
        return bool((y != moved).narrow(axis, 0 if changed else 1, size - 1).any())
    return False


def at_other_extents(host: nn.Module, call: Call, axis: int) -> list[tuple[Shape, Shape]]:
    """Shapes that the host reads and writes at other extents of an axis, of those that it takes."""
    size = call.x.shape[axis]
    # Even ones too: merged neighbours want them. Halves are for what wants more.
    extents = (size - 1, size - 2, size + 1, size // 2)
    found = ((extent, _at_extent(host, call, axis, extent)) for extent in extents if extent > 0)
    x = tuple(call.x.shape)
    return [
        ((*x[:axis], extent, *x[axis + 1 :]), tuple(y.shape))
        for extent, y in found
        if isinstance(y, Tensor)
    ]


def _takes_other_extents(host: nn.Module, call: Call, axis: int) -> bool:
    size = call.x.shape[axis]
    # Halves and doubles too: windows and merged neighbours want even extents.
    extents = {size - 1, size // 2, 2 * size} - {0}
    return any(_at_extent(host, call, axis, extent) is not None for extent in extents)


def _at_extent(host: nn.Module, call: Call, axis: int, extent: int) -> Any:
    """Output at another extent of an axis; ``None`` if the host does not take it."""
    x = _resized(call.x, axis, extent)
    # Masks have the extent as well, but a scale of the same size may stand among them.
    for further in (_further(call, call.x.shape[axis], extent), call.further):
        with suppress(Exception):
            return _run(host, x, further)
    return None


def _run(host: nn.Module, x: Tensor, further: tuple[Sequence[Any], Mapping[str, Any]]) -> Any:
    with side_effect_free(host, training=False), torch.no_grad():
        torch.manual_seed(0)
        return host(x, *further[0], **further[1])


def _further(call: Call, size: int, extent: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Arguments behind the input with every axis of this size resized."""

    def resized(value: Any) -> Any:
        if isinstance(value, Tensor):
            for axis in (i for i, found in enumerate(value.shape) if found == size):
                value = _resized(value, axis, extent)
        return value

    args, kwargs = call.further
    return [resized(value) for value in args], {k: resized(v) for k, v in kwargs.items()}


def _resized(x: Tensor, axis: int, extent: int) -> Tensor:
    return x.index_select(axis, torch.arange(extent, device=x.device) % x.shape[axis])
