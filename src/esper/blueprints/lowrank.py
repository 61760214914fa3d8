"""Linear maps of low rank: as such, and scaled up for adapting a frozen layer in few steps."""

from collections import OrderedDict
from dataclasses import dataclass
from math import sqrt
from typing import cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.base import ANY_VECTOR, Blueprint
from esper.contracts.errors import ConfigError
from esper.contracts.seeds import LayerSpec

# F features read, G features written, r width


@final
@dataclass(frozen=True)
class LowRank(Blueprint):
    """``U(V x)`` with ``V_rF`` random and ``U_Gr`` zero; no bias, the host has one.

    Parameters: ``r (F + G)``; rank at most ``min(F, G)``.

    Source:
        Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, section 4.1; without
        its factor alpha / r.
    """

    name = "lowrank"
    description = "linear map of low rank (LoRA)"
    kinds = ANY_VECTOR
    whitened = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                down=nn.Linear(spec.in_size, width, bias=False),
                up=nn.Linear(width, spec.out_size, bias=False),
            )
        )

    @override
    def widest(self, spec: LayerSpec) -> int:
        return min(spec.in_size, spec.out_size)


@final
@dataclass(frozen=True)
class LoRA(Blueprint):
    """``s / sqrt(r) U(V x)``, ``V_rF`` uniform within ``1 / sqrt(F)``, ``U_Gr`` zero; no bias.

    Under Adam, whose steps do not depend on the size of a gradient, the scale is the learning rate
    of ``U`` in units of that of ``V``, and a short adaptation needs both to move
    (``docs/decisions/0041``). Parameters: ``r (F + G)``; rank at most ``min(F, G)``.

    Args:
        scale: ``s``, > 0.

    Raises:
        ConfigError: if the scale is not positive.

    Source:
        Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, section 4.1, with the
        initial values of its implementations; Kalajdzievski (2023), rsLoRA, for the root; Hayou et
        al. (2024), LoRA+, for unequal rates.
    """

    scale: float = 8.0

    name = "lora"
    description = "linear map of low rank, scaled up as in LoRA; for frozen layers"
    kinds = ANY_VECTOR

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"scale of blueprint lora is {self.scale}; it must be positive")

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return LoRAKernel(spec.in_size, spec.out_size, width, self.scale / sqrt(width))

    @override
    def initialise(self, kernel: nn.Module, generator: torch.Generator) -> None:
        super().initialise(kernel, generator)
        cast("LoRAKernel", kernel).down.weight.mul_(1 / sqrt(3))

    @override
    def widest(self, spec: LayerSpec) -> int:
        return min(spec.in_size, spec.out_size)


@final
class LoRAKernel(nn.Module):
    """Kernel of `LoRA`, of rank ``width``; ``scale`` is the whole factor."""

    def __init__(self, in_size: int, out_size: int, width: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(in_size, width, bias=False)
        self.up = nn.Linear(width, out_size, bias=False)
        self.scale = scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.up(self.down(x))) * self.scale
