"""Units in the width between layers: rows of those that give it, columns of those that read it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn
from typing_extensions import override

from esper.blueprints.base import Blueprint
from esper.contracts.seeds import LayerSpec, Piece


@final
class UnitsKernel(nn.Module):
    """Tensors of new units; the modules of the host compute with them, so it has no forward.

    Its parts are named as those of the pieces; that of a batch norm is one too, whose statistics
    whatever resets or freezes the host's reaches as well.

    Args:
        pieces: What one unit adds.
        units: Number of units.
    """

    def __init__(self, pieces: tuple[Piece, ...], units: int) -> None:
        super().__init__()
        self.units = units
        running = {piece.part: piece for piece in pieces if piece.tensor == "running_mean"}
        for piece in pieces:
            if not hasattr(self, piece.part):
                found = running.get(piece.part)
                part: nn.Module = nn.Module()
                if found is not None:
                    part = nn.BatchNorm1d(found.of(units)[0], affine=False)
                self.add_module(piece.part, part)
            if not piece.tensor.startswith("running_"):
                tensor = nn.Parameter(torch.empty(piece.of(units)))
                self.get_submodule(piece.part).register_parameter(piece.tensor, tensor)


@dataclass(frozen=True)
class Units(Blueprint):
    """Units whose rows are random, at the size of the host's own, and whose columns are zero.

    Before they train, the rows meet the data: see ``start``.

    Attributes:
        start: How the rows are chosen once there is a batch: ``"data"`` sets each unit's threshold
            at a quantile of what it sees; ``"select"`` also chooses each among random candidates,
            by the gradient that it explains; ``"split"`` starts from copies of the units that there
            are; ``"size"`` only gives them the size of the host's own.

    Source:
        Evci et al. (2022), GradMax, section 3.1 (zero columns keep the function); Wu, Wang & Liu
        (2019), Splitting Steepest Descent; Chen, Goodfellow & Shlens (2016), Net2Net, section 3.
    """

    start: ClassVar[str] = "data"

    name = "units"
    description = "more units in a width, thresholds set by the data"
    kinds = ("width",)
    born_zero = ("consumer",)

    @override
    def assemble(self, spec: LayerSpec, width: int) -> nn.Module:
        return UnitsKernel(spec.pieces, width)

    @override
    def initialise(self, kernel: nn.Module, generator: torch.Generator) -> None:
        for module in kernel.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()
        for name, parameter in kernel.named_parameters():
            if name.startswith("consumer"):
                parameter.zero_()
            elif parameter.dim() < 2:
                parameter.fill_(float(name.startswith("norm") and name.endswith("weight")))
            else:
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                size = (len(parameter) / parameter.numel()) ** 0.5
                parameter.copy_(drawn.normal_(std=size, generator=generator))


@final
@dataclass(frozen=True)
class UnitsSelect(Units):
    """As ``Units``; each is the best of many candidates by the gradient that it explains."""

    start = "select"
    name = "units_select"
    description = "more units in a width, chosen by the gradient that they explain"


@final
@dataclass(frozen=True)
class UnitsSplit(Units):
    """As ``Units``; they start as copies of the units there are, a little apart."""

    start = "split"
    name = "units_split"
    description = "more units in a width, copies of the most useful ones"


@final
@dataclass(frozen=True)
class Heads(Units):
    """As ``Units``, for heads of attention: nothing is known of their thresholds."""

    start = "size"
    name = "heads"
    description = "more heads of attention, rows at the size of the host's"
    kinds = ("heads",)
