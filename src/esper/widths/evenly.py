"""Growth of all widths by one factor, as far as a budget goes: as a wider host would have it."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from esper.widths.kasmina_width import KasminaWidth
from esper.widths.members import parts_of, tensor_of

_ROUNDS = 40


def even_units(widths: Sequence[KasminaWidth], budget: int) -> dict[str, int]:
    """Units of each width by name, were all that the host was born with widened by one factor.

    It is the largest factor, rounded to units, that adds at most ``budget`` parameters once all is
    merged. What has grown since changes nothing.
    """
    sizes = _Sizes(widths)
    born = sizes.of({width: width.born for width in widths})

    def fits(factor: float) -> bool:
        return sizes.of(_wider(widths, factor)) - born <= budget

    least, most = 1.0, 2.0
    while widths and fits(most):
        least, most = most, 2 * most
    for _ in range(_ROUNDS):
        middle = (least + most) / 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return {width.name: units for width, units in _wider(widths, least).items()}


def _wider(widths: Sequence[KasminaWidth], factor: float) -> dict[KasminaWidth, int]:
    return {width: int(width.born * factor + 0.5) for width in widths}


class _Sizes:
    """Sizes of the parameters that grow with widths: in proportion to each that has an axis."""

    def __init__(self, widths: Sequence[KasminaWidth]) -> None:
        self._found: dict[tuple[int, int], tuple[Tensor, KasminaWidth]] = {}
        for width in widths:
            for part in parts_of(width.members):
                tensor = tensor_of(part.module, part.tensor)
                if isinstance(tensor, nn.Parameter):
                    self._found[id(tensor), part.dim] = (tensor, width)

    def of(self, units: Mapping[KasminaWidth, int]) -> int:
        """Parameters in all, with so many units."""
        numbers: dict[int, int] = {}
        for (key, _), (tensor, width) in self._found.items():
            # Axis by axis, so each division is exact.
            numbers[key] = numbers.get(key, tensor.numel()) // width.units * units[width]
        return sum(numbers.values())
