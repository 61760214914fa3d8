"""Hidden layer beside the host: widens a block."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from esper.blueprints.base import ANY_VECTOR, Blueprint, activation
from esper.contracts.seeds import LayerSpec

# F features read, G features written, h hidden units


@final
@dataclass(frozen=True)
class Bottleneck(Blueprint):
    """``U act(V x + b)`` with ``V_hF`` random, ``b_h`` and ``U_Gh`` zero.

    Around a Linear-ReLU-Linear block, ``activation="relu"`` is exactly ``h`` more hidden units.
    Parameters: ``h (F + G + 1)``.

    Args:
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        ConfigError: if there is no such activation.

    Source:
        Houlsby et al. (2019), Parameter-Efficient Transfer Learning for NLP, section 2.1; here
        beside the layer, not behind it.
    """

    activation: str = "gelu"

    name = "bottleneck"
    description = "hidden layer beside the host: an MLP"
    kinds = ANY_VECTOR
    whitened = True

    def __post_init__(self) -> None:
        activation(self.activation)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                down=nn.Linear(spec.in_size, width),
                act=activation(self.activation),
                up=nn.Linear(width, spec.out_size, bias=False),
            )
        )
