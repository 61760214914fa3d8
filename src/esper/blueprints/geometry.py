"""Geometry of convolutional kernels: size, stride and padding that give the host's extent.

A host that is itself a convolution passes its geometry on, so that the two agree at every
resolution. Of any other host only the extents are known: a whole stride ``s`` with
``out = ceil(in / s)`` (padded convolutions) or ``out = floor(in / s)`` (pooling) is derived from
all that were seen, the plainest one first. What lies beyond the edge (zeros, a reflection, the
other side) and which groups of channels are kept apart are the host's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import nn

from esper.contracts.errors import KernelError
from esper.contracts.seeds import LayerSpec

_SIZE = 3
_CONVOLUTION: dict[str, Callable[..., nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d}
_PAD: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("conv1d", "zeros"): nn.ZeroPad1d,
    ("conv1d", "reflect"): nn.ReflectionPad1d,
    ("conv1d", "replicate"): nn.ReplicationPad1d,
    ("conv1d", "circular"): nn.CircularPad1d,
    ("conv2d", "zeros"): nn.ZeroPad2d,
    ("conv2d", "reflect"): nn.ReflectionPad2d,
    ("conv2d", "replicate"): nn.ReplicationPad2d,
    ("conv2d", "circular"): nn.CircularPad2d,
}


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
    causal = [spec.causal or letter == "T" for letter in spec.axes if letter not in "BFC"]
    if not spec.kernel_size:
        derived = [_derived([pair]) for pair in seen]
        return tuple(_causal(axis) if c else axis for axis, c in zip(derived, causal, strict=True))
    told = [
        values or (default,) * rank
        for values, default in (
            (spec.kernel_size, 1),
            (spec.stride, 1),
            (spec.padding, 0),
            (spec.padding_after or spec.padding, 0),
            (spec.dilation, 1),
        )
    ]
    if any(len(values) != rank for values in told):
        raise KernelError(f"kernel_size, stride, padding, dilation need {rank} number(s) each")
    moves = tuple(
        _told(Axis(*numbers), spec.padding_mode, causal=c)
        for *numbers, c in zip(*told, causal, strict=True)
    )
    for axis, (read, written) in zip(moves, seen, strict=True):
        if axis.extent(read) != written:
            raise KernelError(
                f"its own geometry gives {axis.extent(read)} from {read}, not {written}"
            )
    return moves


def misfit(spec: LayerSpec) -> str:
    """Reason why no convolution has the layer's extents; empty if one has."""
    if spec.doubt:
        return spec.doubt
    try:
        axes(spec)
    except KernelError as error:
        return str(error)
    if spec.in_size % spec.groups or spec.out_size % spec.groups:
        return f"its channels do not divide into {spec.groups} groups"
    return ""


def confirmed(spec: LayerSpec, seen: Sequence[Sequence[tuple[int, int]]]) -> LayerSpec:
    """Specification of a convolutional layer whose geometry holds at all extents seen.

    Args:
        spec: Of one pass; where no geometry has its extents, it is returned as it is.
        seen: Extents read and written, axis by axis; the first are those of ``spec``.

    Returns:
        The specification, with a ``doubt`` if no geometry has all the extents.
    """
    try:
        moves = axes(spec)
        if _holds(moves, seen):
            return spec
    except KernelError:
        return spec
    try:
        found = [_derived(pairs) for pairs in seen]
    except KernelError as error:
        return replace(spec, doubt=str(error))
    return replace(
        spec,
        kernel_size=tuple(axis.size for axis in found),
        stride=tuple(axis.stride for axis in found),
        padding=tuple(axis.before for axis in found),
        padding_after=tuple(axis.after for axis in found),
        dilation=(),
    )


def _holds(moves: Sequence[Axis], seen: Sequence[Sequence[tuple[int, int]]]) -> bool:
    return all(
        axis.extent(read) == written
        for axis, pairs in zip(moves, seen, strict=True)
        for read, written in pairs
    )


def grouped(spec: LayerSpec, width: int) -> int:
    """Hidden channels of a kernel of this width: as many in each of the host's groups."""
    return width * spec.groups


def spatial(
    spec: LayerSpec, in_size: int, out_size: int, *, groups: int | None = None, bias: bool = True
) -> nn.Module:
    """Convolution with the geometry, and unless told otherwise the groups, of the host."""
    moves = axes(spec)
    even = all(axis.before == axis.after for axis in moves)
    convolution = _CONVOLUTION[spec.kind](
        in_size,
        out_size,
        tuple(axis.size for axis in moves),
        stride=tuple(axis.stride for axis in moves),
        padding=tuple(axis.before if even else 0 for axis in moves),
        dilation=tuple(axis.dilation for axis in moves),
        groups=spec.groups if groups is None else groups,
        bias=bias,
        padding_mode=spec.padding_mode if even else "zeros",
    )
    if even:
        return convolution
    sides = tuple(side for axis in reversed(moves) for side in (axis.before, axis.after))
    return nn.Sequential(_PAD[spec.kind, spec.padding_mode](sides), convolution)


def pointwise(spec: LayerSpec, in_size: int, out_size: int, *, bias: bool = False) -> nn.Module:
    """Convolution of size 1: a linear map of the channels, within the host's groups."""
    return _CONVOLUTION[spec.kind](in_size, out_size, 1, bias=bias, groups=spec.groups)


def _told(host: Axis, padding_mode: str, *, causal: bool) -> Axis:
    # A mirror has no image of an edge of one element, which a host of size 1 may be given.
    if host.size > 1 or padding_mode == "reflect":
        return host
    # A 1x1 host sees no neighbours; size 3 with one more padding has its extent, and sees them.
    wider = Axis(_SIZE, host.stride, host.before + 1, host.after + 1)
    return _causal(wider) if causal else wider


def _causal(axis: Axis) -> Axis:
    """Axis with all its padding before the first element."""
    return Axis(axis.size, axis.stride, axis.before + axis.after, 0, axis.dilation)


def _derived(seen: Sequence[tuple[int, int]]) -> Axis:
    read, written = seen[0]
    for stride in _plainest_first(read, written):
        # A stride beyond 3 would skip input, so the kernel is as long as the stride.
        size = max(_SIZE, stride)
        for padding in (size - 1, size - stride):  # ceil, floor
            axis = Axis(size, stride, padding // 2, padding - padding // 2)
            if _holds([axis], [seen]):
                return axis
    told = ", ".join(f"{read} -> {written}" for read, written in dict.fromkeys(seen))
    raise KernelError(
        f"no whole stride s gives ceil(n / s) or floor(n / s) for its extents, {told}; wrap the "
        "convolution itself, so that its own geometry is known, or pad it"
    )


def _plainest_first(read: int, written: int) -> list[int]:
    if min(read, written) < 1 or written > read:
        return []
    exact = [read // written] if read % written == 0 else []
    powers = [2**power for power in range(read.bit_length())]
    return [*exact, *powers, *range(1, read + 1)]
