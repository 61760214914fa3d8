"""Gated linear units: products of features."""

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
class GLU(Blueprint):
    """``Z((V x + b) * sigmoid(W x + c))`` with ``V_rF, W_rF`` random, ``b_r, c_r, Z_Gr`` zero.

    ``V`` and ``W`` are the two halves of one projection. Parameters: ``r (2 F + G + 2)``.

    Source:
        Dauphin et al. (2017), Language Modeling with Gated Convolutional Networks, equation 1.
    """

    name = "glu"
    description = "gated linear units: products of features"
    kinds = ANY_VECTOR
    whitened = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                down=nn.Linear(spec.in_size, 2 * width),
                glu=nn.GLU(dim=-1),
                up=nn.Linear(width, spec.out_size, bias=False),
            )
        )
