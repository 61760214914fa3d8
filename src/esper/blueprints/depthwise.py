"""One filter per channel, then a cheap mix of the channels."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints import _geometry
from esper.blueprints._base import ANY_CONV, Blueprint
from esper.contracts.seeds import LayerSpec

# C channels read, D channels written, r width, k taps of the spatial convolution (9 for 3x3)


@final
@dataclass(frozen=True)
class Depthwise(Blueprint):
    """``U(V gelu(S x + b))``: ``S`` one filter per channel, ``V_rC`` random, ``U_Dr`` zero.

    ``S`` moves as the host does. Parameters: ``C (k + 1) + r (C + D)``; rank ``min(C, D)`` is
    the end.

    Source:
        Howard et al. (2017), MobileNets, section 3.1; its pointwise convolution here has low rank.
    """

    name = "depthwise"
    description = "one filter per channel, then a low-rank mix of channels"
    kinds = ANY_CONV
    born_zero = ("up",)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        channels = spec.in_size
        return nn.Sequential(
            OrderedDict(
                spatial=_geometry.spatial(spec, channels, channels, groups=channels),
                act=nn.GELU(),
                down=_geometry.pointwise(spec, channels, width),
                up=_geometry.pointwise(spec, width, spec.out_size),
            )
        )

    @override
    def misfit(self, spec: LayerSpec) -> str:
        return _geometry.misfit(spec)

    @override
    def widest(self, spec: LayerSpec) -> int:
        return min(spec.in_size, spec.out_size)
