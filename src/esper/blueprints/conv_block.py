"""Additional filters of a convolution."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints import geometry
from esper.blueprints.base import ANY_CONV, Blueprint, activation
from esper.contracts.seeds import LayerSpec

# C channels read, D channels written, h filters, k taps of the spatial convolution (9 for 3x3)


@final
@dataclass(frozen=True)
class ConvBlock(Blueprint):
    """``Z act(S x + b)``: spatial ``S`` from ``C`` to ``h`` channels, 1x1 ``Z_Dh`` zero.

    ``S`` moves as the host does. Parameters: ``h (C k + 1 + D)``.

    Args:
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        ConfigError: if there is no such activation.

    Source:
        New filters of a convolutional layer, as in Evci et al. (2022), GradMax, and
        Chen et al. (2016), Net2Net (Net2WiderNet).
    """

    activation: str = "gelu"

    name = "conv_block"
    description = "a few 3x3 filters over all channels, read out by 1x1"
    kinds = ANY_CONV
    whitened = True

    def __post_init__(self) -> None:
        activation(self.activation)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        hidden = geometry.grouped(spec, width)
        return nn.Sequential(
            OrderedDict(
                spatial=geometry.spatial(spec, spec.in_size, hidden),
                act=activation(self.activation),
                up=geometry.pointwise(spec, hidden, spec.out_size),
            )
        )

    @override
    def misfit(self, spec: LayerSpec) -> str:
        return geometry.misfit(spec)
