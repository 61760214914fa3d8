"""Low-rank linear map behind one gate."""

from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.base import ANY_VECTOR, Blueprint
from esper.contracts.seeds import LayerSpec

# F features read, G features written, r width, ... batch or batch and time


@final
@dataclass(frozen=True)
class Gate(Blueprint):
    """``sigmoid(w . x + b) * U(V x)`` with ``w_F, V_rF`` random, ``b`` and ``U_Gr`` zero.

    One gate for the whole map (per token in a sequence), where ``glu`` has one per hidden unit.
    Parameters: ``r (F + G) + F + 1``; rank at most ``min(F, G)``.

    Source:
        The conditional part of a mixture with one expert: Jacobs et al. (1991), Adaptive Mixtures
        of Local Experts; the map is that of Hu et al. (2021), LoRA.
    """

    name = "gate"
    description = "low-rank map behind one switch that the input sets"
    kinds = ANY_VECTOR
    whitened = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return GateKernel(spec.in_size, spec.out_size, width)

    @override
    def widest(self, spec: LayerSpec) -> int:
        return min(spec.in_size, spec.out_size)


@final
class GateKernel(nn.Module):
    """Kernel of ``Gate``."""

    def __init__(self, in_size: int, out_size: int, width: int) -> None:
        super().__init__()
        self.switch = nn.Linear(in_size, 1)
        self.down = nn.Linear(in_size, width, bias=False)
        self.up = nn.Linear(width, out_size, bias=False)

    @override
    def forward(self, x_F: Tensor) -> Tensor:
        return cast("Tensor", torch.sigmoid(self.switch(x_F)) * self.up(self.down(x_F)))
