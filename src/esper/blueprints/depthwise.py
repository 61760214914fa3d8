"""Depthwise separable convolution."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints import geometry
from esper.blueprints.base import ANY_CONV, Blueprint
from esper.contracts.seeds import LayerSpec

# C channels read, D channels written, r width, k taps of the spatial convolution (9 for 3x3)


@final
@dataclass(frozen=True)
class Depthwise(Blueprint):
    """``U gelu(V S x + b)``: ``S`` one filter per channel, ``V_rC`` random, ``b_r, U_Dr`` zero.

    ``S`` moves as the host does. ``V S`` are ``r`` separable filters: those of ``conv_block`` at a
    fraction of the parameters, ``C k + r (C + 1 + D)``.

    Source:
        Howard et al. (2017), MobileNets, section 3.1; without a nonlinearity between depthwise and
        pointwise convolution, as in Chollet (2017), Xception, section 4.7.
    """

    name = "depthwise"
    description = "3x3 filters of one channel each, mixed by 1x1: separable"
    kinds = ANY_CONV
    whitened = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        channels, hidden = spec.in_size, geometry.grouped(spec, width)
        return nn.Sequential(
            OrderedDict(
                spatial=geometry.spatial(spec, channels, channels, groups=channels, bias=False),
                mix=geometry.pointwise(spec, channels, hidden, bias=True),
                act=nn.GELU(),
                up=geometry.pointwise(spec, hidden, spec.out_size),
            )
        )

    @override
    def misfit(self, spec: LayerSpec) -> str:
        return geometry.misfit(spec)
