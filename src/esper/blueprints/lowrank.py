"""Linear map of low rank."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints.base import ANY_VECTOR, Blueprint
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
