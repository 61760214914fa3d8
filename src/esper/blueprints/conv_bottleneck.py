"""Convolutional bottleneck: 1x1, spatial, 1x1."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints import geometry
from esper.blueprints.base import ANY_CONV, Blueprint, activation
from esper.contracts.seeds import LayerSpec

# C channels read, D channels written, k taps of the spatial convolution (9 for 3x3)


@final
@dataclass(frozen=True)
class ConvBottleneck(Blueprint):
    """``Z act(S act(V x + b) + c)``: 1x1 to ``a`` channels, spatial ``S`` to ``b``, 1x1 ``Z`` zero.

    ``S`` moves as the host does. ``a`` and ``b`` grow in turn, (1, 1), (1, 2), (2, 2), (2, 3)...,
    so that the quadratic term leaves little of a budget unused.
    Parameters: ``a (C + 1) + b (a k + 1) + b D``.

    Args:
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        ConfigError: if there is no such activation.

    Source:
        He et al. (2016), Deep Residual Learning, section 4.1 and figure 5; no batch norm.
    """

    activation: str = "gelu"

    name = "conv_bottleneck"
    description = "1x1, 3x3, 1x1 convolutions over few channels"
    kinds = ANY_CONV
    whitened = True

    def __post_init__(self) -> None:
        activation(self.activation)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        first, second = (
            geometry.grouped(spec, part) for part in ((width + 1) // 2, width // 2 + 1)
        )
        return nn.Sequential(
            OrderedDict(
                down=geometry.pointwise(spec, spec.in_size, first, bias=True),
                act=activation(self.activation),
                spatial=geometry.spatial(spec, first, second),
                act_after=activation(self.activation),
                up=geometry.pointwise(spec, second, spec.out_size),
            )
        )

    @override
    def misfit(self, spec: LayerSpec) -> str:
        return geometry.misfit(spec)
