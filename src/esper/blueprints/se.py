"""Squeeze-and-excitation: gain of each channel, from the mean over the picture."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints import geometry
from esper.blueprints.base import ANY_CONV, Blueprint, shape_changes
from esper.contracts.seeds import LayerSpec

# B batch, C channels, r width, ... length, or height and width


@final
@dataclass(frozen=True)
class SqueezeExcite(Blueprint):
    """``x * tanh(Z gelu(V pool(x) + b) + c)`` with ``V_rC`` random, ``b_r, Z_Cr, c_C`` zero.

    ``pool`` is the mean over the picture. Where the paper has a sigmoid, tanh lets the factor begin
    at 0 with slope 1: the kernel is added to the host, so its 0 is the paper's 1. GELU, because
    few ReLUs may be born dead. Fits only layers that keep the shape.
    Parameters: ``r (2 C + 1) + C``.

    Source:
        Hu, Shen & Sun (2018), Squeeze-and-Excitation Networks, sections 3.1 and 3.2.
    """

    name = "se"
    description = "gain of each channel, set by the whole picture"
    kinds = ANY_CONV
    whitened = True
    born_zero = ("excite.up",)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return SqueezeExciteKernel(spec, width)

    @override
    def misfit(self, spec: LayerSpec) -> str:
        if spec.causal or "T" in spec.axes:
            return "its gain is set by the whole length, and this layer never reads the future"
        return spec.doubt or shape_changes(spec)


@final
class SqueezeExciteKernel(nn.Module):
    """Kernel of ``SqueezeExcite``."""

    def __init__(self, spec: LayerSpec, width: int) -> None:
        super().__init__()
        pool = nn.AdaptiveAvgPool1d(1) if spec.kind == "conv1d" else nn.AdaptiveAvgPool2d(1)
        hidden = geometry.grouped(spec, width)
        self.excite = nn.Sequential(
            OrderedDict(
                pool=pool,
                down=geometry.pointwise(spec, spec.in_size, hidden, bias=True),
                act=nn.GELU(),
                up=geometry.pointwise(spec, hidden, spec.in_size, bias=True),
            )
        )

    @override
    def forward(self, x_BC: Tensor) -> Tensor:
        return x_BC * torch.tanh(self.excite(x_BC))
