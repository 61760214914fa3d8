"""Small convolutional network: from a picture or a signal to features."""

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints.base import ANY_POOL, Blueprint, activation
from esper.contracts.seeds import LayerSpec

# C channels read, G features written, w width

_FINE = 7
"""Extent at which the picture is not halved any more."""


@final
@dataclass(frozen=True)
class ConvPool(Blueprint):
    """``Z mean(act(S_n ... act(S_1 x)))``: 3x3 convolutions of ``w`` channels, and their mean.

    The first convolutions halve the picture until no extent is above 7, at most three times; one
    more does not. ``Z_Gw`` is zero. Parameters in two dimensions, ``n`` convolutions:
    ``w (9 C + 1) + (n - 1) w (9 w + 1) + w G``.

    Args:
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        ConfigError: if there is no such activation.

    Source:
        Springenberg et al. (2015), Striving for Simplicity, section 3 (strided convolutions, mean
        over all places).
    """

    activation: str = "gelu"

    name = "conv_pool"
    description = "small convolutional network with a mean over all places"
    kinds = ANY_POOL
    whitened = True

    def __post_init__(self) -> None:
        activation(self.activation)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        conv = nn.Conv1d if spec.kind == "pool1d" else nn.Conv2d
        pool = nn.AdaptiveAvgPool1d(1) if spec.kind == "pool1d" else nn.AdaptiveAvgPool2d(1)
        parts: list[tuple[str, nn.Module]] = []
        for index, stride in enumerate(_strides(spec)):
            read = width if index else spec.in_size
            parts.append((f"conv{index}", conv(read, width, 3, stride=stride, padding=1)))
            parts.append((f"act{index}", activation(self.activation)))
        parts += [("pool", pool), ("flatten", nn.Flatten())]
        return nn.Sequential(
            OrderedDict([*parts, ("up", nn.Linear(width, spec.out_size, bias=False))])
        )


def _strides(spec: LayerSpec) -> list[int]:
    """Stride of each convolution."""
    strides, extent = [1], max(spec.in_extent, default=1)
    while extent > _FINE and len(strides) < 4:
        strides, extent = [2, *strides], ceil(extent / 2)
    return strides
