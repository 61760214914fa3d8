"""States of a seed, specification of a layer, and cost of a kernel."""

from dataclasses import dataclass
from enum import StrEnum


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
class LayerSpec:
    """Specification of a layer from which a blueprint builds a kernel.

    Attributes:
        kind: How the tensor is laid out: ``"features"`` (B, F), ``"sequence"`` (B, T, F),
            ``"conv1d"`` (B, C, L) or ``"conv2d"`` (B, C, H, W).
        in_size: Features or channels that the layer reads.
        out_size: Features or channels that the layer writes.
        in_extent: Length, or height and width, of the input seen; empty for features and sequences.
        out_extent: The same for the output.
        layer_type: Class name of the host, as ``"Linear"``.
        kernel_size: Of a host that is itself a convolution, one number per axis; otherwise empty,
            and the stride is derived from the extents. Leave it empty for ``padding="same"`` too.
        stride: Of that convolution; empty means 1.
        padding: Of that convolution, on each side; empty means 0.
        dilation: Of that convolution; empty means 1.
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

    @property
    def same_shape(self) -> bool:
        """True if the layer's output has the shape of its input."""
        return self.in_size == self.out_size and self.in_extent == self.out_extent


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """Cost of a kernel: trainable parameters, and milliseconds for one forward pass."""

    parameters: int
    latency_ms: float | None = None
