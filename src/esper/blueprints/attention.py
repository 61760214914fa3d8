"""A narrow attention head."""

from dataclasses import dataclass
from typing import cast, final

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints.base import Blueprint
from esper.contracts.seeds import LayerSpec

# B batch, T time, F features read, G features written, r width


@final
@dataclass(frozen=True)
class Attention(Blueprint):
    """``Z softmax(Q x (K x)^T / sqrt(r)) V x``, one head.

    ``Q_rF, K_rF, V_rF`` are random and the thirds of one projection, ``Z_Gr`` is zero. The head
    sees positions only through ``x``. Parameters: ``r (3 F + G)``; width at most ``F``.

    Args:
        causal: A token reads only itself and those before it. ``False`` is for models that may see
            the whole sequence; a language model would read its own answer.

    Source:
        Vaswani et al. (2017), Attention Is All You Need, section 3.2.1.
    """

    causal: bool = True

    name = "attention"
    description = "one narrow attention head over time, causal"
    kinds = ("sequence",)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return AttentionKernel(spec.in_size, spec.out_size, width, causal=self.causal)

    @override
    def widest(self, spec: LayerSpec) -> int:
        return spec.in_size


@final
class AttentionKernel(nn.Module):
    """Kernel of ``Attention``."""

    def __init__(self, in_size: int, out_size: int, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.down = nn.Linear(in_size, 3 * width, bias=False)
        self.up = nn.Linear(width, out_size, bias=False)

    @override
    def forward(self, x_BTF: Tensor) -> Tensor:
        # An axis for the one head: the fast implementations ask for four dimensions.
        query, key, value = self.down(x_BTF).unsqueeze(1).chunk(3, dim=-1)
        read = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return cast("Tensor", self.up(read.squeeze(1)))
