"""States of a seed, specification of a layer, and cost of a kernel."""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod


class SeedState(StrEnum):
    """State of a seed; ``execution.lifecycle`` has the allowed steps."""

    DORMANT = "dormant"
    GERMINATED = "germinated"
    TRAINING = "training"
    BLENDING = "blending"
    HOLDING = "holding"
    FOSSILIZED = "fossilized"
    CULLED = "culled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tensor that a unit adds to a module of the host.

    Attributes:
        part: Role and number of the module among those that grow, as ``"consumer1"``.
        tensor: Name of the parameter or buffer, as ``"weight"``.
        shape: Its shape for one unit.
        dim: Axis that grows with the units.
    """

    part: str
    tensor: str
    shape: tuple[int, ...]
    dim: int

    def of(self, units: int) -> tuple[int, ...]:
        """Shape for a number of units."""
        return tuple(n * units if i == self.dim else n for i, n in enumerate(self.shape))


_AXES = {
    "features": "BF",
    "sequence": "BTF",
    "conv1d": "BCL",
    "conv2d": "BCHW",
    "pool1d": "BCL",
    "pool2d": "BCHW",
    "width": "BF",
    "heads": "BF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Specification of a layer from which a blueprint builds a kernel.

    Attributes:
        kind: What its kernels may mix beside features or channels: ``"features"`` nothing (B, F)
            or (B, ..., F), ``"sequence"`` time (B, T, F), ``"conv1d"`` length (B, C, L),
            ``"conv2d"`` height and width (B, C, H, W); ``"pool1d"`` and ``"pool2d"`` the same, and
            they write features alone (B, F). ``"width"`` is no layer: its kernels are units
            between layers; of ``"heads"`` these are heads of attention.
        in_size: Features or channels that the layer reads.
        out_size: Features or channels that the layer writes.
        in_extent: Length, or height and width, of the input seen; empty for features and sequences
            unless convolutions fit them too.
        out_extent: The same for the output.
        layer_type: Class name of the host, as ``"Linear"``.
        kernel_size: Of a host that is itself a convolution, one number per axis; otherwise empty,
            and the stride is derived from the extents.
        stride: Of that convolution; empty means 1.
        padding: Of that convolution, before the first element; empty means 0.
        dilation: Of that convolution; empty means 1.
        padding_after: Behind the last element; empty means as much as before the first.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        groups: Groups of channels that the convolution keeps apart.
        layout: Axes of the layer's input, one letter each, where they are not the kind's own:
            B batch, T time, L length, H height, W width, F or C features, N unknown. As ``"TBF"``.
        causal: True for a ``"conv1d"`` layer whose output never depends on later input.
        doubt: Reason why kernels must not mix the axes beside the features; empty if they may.
        pieces: Of a width, what one unit adds to the modules that grow with it.
        crossed: Parameters that a unit adds besides, once it is merged, where its rows and columns
            cross those of other kernels.
        corner: The same of a single unit's own row and column; n units have n² times as many.
        flat: True if all axes beside the examples are one, the features, to the kernel: the layer
            takes no other extents, and writes features alone.
    """

    kind: str
    in_size: int
    out_size: int
    in_extent: tuple[int, ...] = ()
    out_extent: tuple[int, ...] = ()
    layer_type: str = ""
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding_after: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    groups: int = 1
    layout: str = ""
    causal: bool = False
    doubt: str = ""
    flat: bool = False
    pieces: tuple[Piece, ...] = ()
    crossed: int = 0
    corner: int = 0

    @property
    def axes(self) -> str:
        """Axes of the layer's input, one letter each."""
        return self.layout or _AXES.get(self.kind, "")

    @property
    def order(self) -> tuple[int, ...]:
        """Axes of the layer's input in the order in which a kernel of this kind reads them.

        Example:
            >>> LayerSpec(kind="sequence", in_size=8, out_size=8, layout="TBF").order
            (1, 0, 2)
        """
        letters = self.axes
        feature = next((i for i, letter in enumerate(letters) if letter in "FC"), -1)
        others = [i for i in range(len(letters)) if i != feature]
        if self.kind == "features" and not self.flat:
            return (*others, feature)
        batch, *rest = sorted(others, key=lambda i: letters[i] != "B")
        if self.kind == "features":
            return (batch, *sorted((*rest, feature)))
        if self.kind == "sequence":
            return (batch, *rest, feature)
        return (batch, feature, *rest)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of kernel that fit; the layer's own first."""
        if self.kind == "features" and len(self.in_extent) == 2:
            return ("features", "conv2d")
        if self.kind == "sequence" and len(self.in_extent) == 1:
            return ("sequence", "conv1d")
        if self.kind.startswith("pool") and self.flat:
            return (self.kind, "features")
        return (self.kind,)

    def seen_as(self, kind: str) -> "LayerSpec":
        """Specification for a kernel of one of ``kinds``."""
        if kind == self.kind and kind.startswith(("conv", "pool")):
            return self
        if kind == "features" and self.flat:
            size = self.in_size * prod(self.in_extent)
            return replace(self, kind=kind, in_size=size, in_extent=(), layout=self.axes)
        if kind in ("features", "sequence"):
            return replace(self, kind=kind, in_extent=(), out_extent=(), layout=self.axes)
        return replace(self, kind=kind, layout=self.axes)

    def input_shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Shape of an input with this batch size, at the extents seen; ``length`` is that of T."""
        return self._shape(batch, length, self.in_size, self.in_extent)

    def output_shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Shape of the output for an input of ``input_shape``."""
        if self.kind.startswith("pool"):
            return (batch, self.out_size)
        return self._shape(batch, length, self.out_size, self.out_extent)

    def _shape(
        self, batch: int, length: int, size: int, extent: tuple[int, ...]
    ) -> tuple[int, ...]:
        known = {"B": batch, "F": size, "C": size}
        space = iter(extent)
        return tuple(
            known[letter] if letter in known else next(space, length) for letter in self.axes
        )

    @property
    def same_shape(self) -> bool:
        """True if the layer's output has the shape of its input."""
        return self.in_size == self.out_size and self.in_extent == self.out_extent


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """Cost of a kernel: trainable parameters, and milliseconds for one forward pass."""

    parameters: int
    latency_ms: float | None = None


def seed_name(layer_name: str, seed_idx: int, blueprint: str = "") -> str:
    """Name of a seed in a sentence.

    Example:
        >>> seed_name("fc1", 0, "glu")
        'layer fc1, seed 0 (glu)'
    """
    return f"layer {layer_name}, seed {seed_idx}" + (f" ({blueprint})" if blueprint else "")
