"""Kernel that cannot help, because it reads other examples: a check of what is kept."""

from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper.blueprints import geometry
from esper.blueprints.base import ANY_CONV, ANY_VECTOR, Blueprint
from esper.blueprints.bottleneck import Bottleneck
from esper.blueprints.conv_block import ConvBlock
from esper.contracts.seeds import LayerSpec


@final
class OfOthers(nn.Module):
    """Kernel's output for one other example less that for a second one.

    Nothing of the example itself is left, and by the difference nothing that is the same for all:
    a constant would be one more bias of the layer, which helps. The examples stand in a circle, in
    an order that looks random and depends on their number alone, so that neighbours in data that
    are sorted are not alike; each gets what the two before it make. Fewer than three have no two
    others, and get zero.

    Args:
        kernel: Maps each example by itself.
        axis: Axis of the examples.

    Example:
        >>> import torch
        >>> OfOthers(nn.Identity(), 0)(torch.tensor([[1.0], [2.0], [4.0]])).T
        tensor([[ 2., -3.,  1.]])
        >>> OfOthers(nn.Identity(), 0)(torch.tensor([[1.0], [2.0]])).any()
        tensor(False)
    """

    def __init__(self, kernel: nn.Module, axis: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.axis = axis

    @override
    def forward(self, x: Tensor) -> Tensor:
        y, count, axis = self.kernel(x), x.shape[self.axis], self.axis
        number = (
            torch.ones_like(y, dtype=torch.float32).transpose(0, axis).flatten(1)[:, 0].cumsum(0)
        )
        circle = torch.sin(number * number).argsort()
        placed = y.index_select(axis, circle)
        others = (placed.roll(1, axis) - placed.roll(2, axis)).index_select(axis, circle.argsort())
        return cast("Tensor", others * (2 * count // (count + 3)))  # times 0 below three, else 1


@final
@dataclass(frozen=True)
class Placebo(Blueprint):
    """``bottleneck`` or ``conv_block``, read at other examples than the one it adds to.

    Where all examples of a batch of training are alike, as in data that are sorted and never
    shuffled, others tell of an example, and it is no placebo.

    Source:
        Breiman (2001), Random Forests, section 10 (an input that is permuted over the examples).
    """

    name = "placebo"
    description = "cannot help, as it reads other examples: never kept, a check of what is"
    kinds = (*ANY_VECTOR, *ANY_CONV)
    whitened = True
    born_zero = ("kernel.up",)
    placebo = True

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        recipe = ConvBlock() if spec.kind in ANY_CONV else Bottleneck()
        return OfOthers(recipe.assemble(spec, width), spec.order.index(spec.axes.index("B")))

    @override
    def misfit(self, spec: LayerSpec) -> str:
        if "B" not in spec.axes:
            return "which axis has the examples is not known"
        return geometry.misfit(spec) if spec.kind in ANY_CONV else ""
