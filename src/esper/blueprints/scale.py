"""Gain and offset of each unit, and the offset alone."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.base import ANY_CONV, ANY_VECTOR, Blueprint, shape_changes
from esper.contracts.seeds import LayerSpec

# G features written, F features, or C channels as (C, 1) or (C, 1, 1)


@final
@dataclass(frozen=True)
class Scale(Blueprint):
    """``s * x + t`` with one ``s`` and one ``t`` per feature or channel, both zero at birth.

    Fits only layers that keep the shape. Parameters: ``2 F`` at any budget (``fixed_size``).

    Source:
        Perez et al. (2018), FiLM, section 2.1, with learnt constants in place of the generator;
        as an adapter: Liu et al. (2022), IA3, section 3.3.
    """

    name = "scale"
    description = "gain and offset of each unit; the smallest kernel"
    kinds = (*ANY_VECTOR, *ANY_CONV)
    born_zero = ("scale", "shift")
    fixed_size = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return ScaleKernel((spec.in_size, *(1 for _ in spec.in_extent)))

    @override
    def misfit(self, spec: LayerSpec) -> str:
        return shape_changes(spec)


@final
class ScaleKernel(nn.Module):
    """Kernel of ``Scale``; ``shape`` broadcasts against an input without its batch."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


@final
@dataclass(frozen=True)
class Bias(Blueprint):
    """``t_G``, the same for every input; zero at birth. Parameters: ``G`` at any budget.

    Source:
        Ben Zaken, Goldberg & Ravfogel (2022), BitFit, section 3.
    """

    name = "bias"
    description = "offset of each unit (BitFit); for frozen layers"
    kinds = ANY_VECTOR
    born_zero = ("shift",)
    fixed_size = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return BiasKernel(spec.out_size)


@final
class BiasKernel(nn.Module):
    """Kernel of ``Bias``."""

    def __init__(self, out_size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(out_size))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :1]) + self.shift
