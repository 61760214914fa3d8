"""Geometry of convolutional kernels: size, stride and padding that give the host's extent.

A host that is itself a convolution passes its geometry on, so that the two agree at every
resolution. Of any other host only the extents are known: a whole stride ``s`` with
``out = ceil(in / s)`` (padded convolutions) or ``out = floor(in / s)`` (pooling) is derived from
them, the plainest one first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec

_SIZE = 3
_CONVOLUTION: dict[str, Callable[..., nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d}
_PAD: dict[str, Callable[..., nn.Module]] = {"conv1d": nn.ZeroPad1d, "conv2d": nn.ZeroPad2d}


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """Convolution along one axis; ``before`` and ``after`` are its padding, in elements."""

    size: int
    stride: int
    before: int
    after: int
    dilation: int = 1

    def extent(self, extent: int) -> int:
        """Extent of the output, given the input's."""
        padded = extent + self.before + self.after
        return (padded - self.dilation * (self.size - 1) - 1) // self.stride + 1


def axes(spec: LayerSpec) -> tuple[Axis, ...]:
    """Geometry of a ``conv1d`` or ``conv2d`` layer, axis by axis.

    Raises:
        KernelError: if no geometry gives the layer's extents.
    """
    rank = {"conv1d": 1, "conv2d": 2}[spec.kind]
    seen = list(zip(spec.in_extent, spec.out_extent, strict=False))
    if len(seen) != rank or len(spec.in_extent) != len(spec.out_extent):
        raise KernelError(f"in_extent and out_extent must have {rank} number(s) each")
    if not spec.kernel_size:
        return tuple(_derived(read, written) for read, written in seen)
    told = [
        values or (default,) * rank
        for values, default in (
            (spec.kernel_size, 1),
            (spec.stride, 1),
            (spec.padding, 0),
            (spec.dilation, 1),
        )
    ]
    if any(len(values) != rank for values in told):
        raise KernelError(f"kernel_size, stride, padding, dilation need {rank} number(s) each")
    moves = tuple(_told(*numbers) for numbers in zip(*told, strict=True))
    for axis, (read, written) in zip(moves, seen, strict=True):
        if axis.extent(read) != written:
            raise KernelError(
                f"its own geometry gives {axis.extent(read)} from {read}, not {written}"
            )
    return moves


def misfit(spec: LayerSpec) -> str:
    """Reason why no convolution has the layer's extents; empty if one has."""
    try:
        axes(spec)
    except KernelError as error:
        return str(error)
    return ""


def spatial(
    spec: LayerSpec, in_size: int, out_size: int, *, groups: int = 1, bias: bool = True
) -> nn.Module:
    """Convolution with the geometry of the host."""
    moves = axes(spec)
    even = all(axis.before == axis.after for axis in moves)
    convolution = _CONVOLUTION[spec.kind](
        in_size,
        out_size,
        tuple(axis.size for axis in moves),
        stride=tuple(axis.stride for axis in moves),
        padding=tuple(axis.before if even else 0 for axis in moves),
        dilation=tuple(axis.dilation for axis in moves),
        groups=groups,
        bias=bias,
    )
    if even:
        return convolution
    sides = tuple(side for axis in reversed(moves) for side in (axis.before, axis.after))
    return nn.Sequential(_PAD[spec.kind](sides), convolution)


def pointwise(spec: LayerSpec, in_size: int, out_size: int, *, bias: bool = False) -> nn.Module:
    """Convolution of size 1: a linear map of the channels."""
    return _CONVOLUTION[spec.kind](in_size, out_size, 1, bias=bias)


def _told(size: int, stride: int, padding: int, dilation: int) -> Axis:
    if size == 1:
        # A 1x1 host sees no neighbours; size 3 with one more padding has its extent, and sees them.
        return Axis(_SIZE, stride, padding + 1, padding + 1)
    return Axis(size, stride, padding, padding, dilation)


def _derived(read: int, written: int) -> Axis:
    for stride in _plainest_first(read, written):
        # A stride beyond 3 would skip input, so the kernel is as long as the stride.
        size = max(_SIZE, stride)
        for padding in (size - 1, size - stride):  # ceil, floor
            axis = Axis(size, stride, padding // 2, padding - padding // 2)
            if axis.extent(read) == written:
                return axis
    raise KernelError(
        f"no whole stride s gives ceil({read} / s) or floor({read} / s) = {written}; wrap the "
        "convolution itself, so that its own geometry is known, or pad it"
    )


def _plainest_first(read: int, written: int) -> list[int]:
    if min(read, written) < 1 or written > read:
        return []
    exact = [read // written] if read % written == 0 else []
    powers = [2**power for power in range(read.bit_length())]
    return [*exact, *powers, *range(1, read + 1)]
