"""How much the layers say of one another: means of kinds by layer, and how far layers are apart.

A random-effects model: the mean reward of a kind's seed in a layer is the kind's mean plus what is
the layer's own, which has a variance of ``ratio`` noise variances; outcomes add the noise.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Final, NamedTuple, final

MEMORY: Final = 1000.0
"""Outcomes that means and noise remember."""

RATIO, _WEIGHT, LEAST = 0.25, 6.0, 0.02
"""Variance between layers that is assumed beforehand, in noise variances; how many degrees of
freedom that is worth; what it is at least, so that no kind's mean stands for more than 50 outcomes
of a layer's own."""


class Standing(NamedTuple):
    """What is believed of a seed.

    Attributes:
        mean: Posterior mean reward, relative to the first reward of all.
        weight: What the belief is worth, in outcomes; 0 if there is none.
        here: Outcomes in this layer.
        layers: Other layers that the belief draws on.
    """

    mean: float
    weight: float
    here: float
    layers: int


NOTHING: Final = Standing(0.0, 0.0, 0.0, 0)


@final
class Cell:
    """One kind in one layer: outcomes, their mean, and what they weigh for the kind's mean."""

    __slots__ = ("count", "mean", "weight")

    def __init__(self, count: float = 0.0, mean: float = 0.0, weight: float = 0.0) -> None:
        self.count = count
        self.mean = mean
        self.weight = weight

    def add(self, reward: float) -> None:
        """Take in an outcome."""
        self.count = min(self.count + 1, MEMORY)
        self.mean += (reward - self.mean) / self.count


@final
class Kind:
    """The cells of one kind by layer, the sum of their weights and of their weighted means."""

    __slots__ = ("cells", "weight", "weighted")

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = {}
        self.weight = 0.0
        self.weighted = 0.0

    def weigh(self, cell: Cell, ratio: float) -> None:
        """Let a cell whose outcomes changed count as what it is now."""
        self.weight -= cell.weight
        cell.weight = 1 / (ratio + 1 / cell.count)
        self.weight += cell.weight

    def weigh_all(self, ratio: float) -> None:
        """Take the sums anew, for another ratio of variances."""
        self.weight = self.weighted = 0.0
        for cell in self.cells.values():
            cell.weight = 1 / (ratio + 1 / cell.count)
            self.weight += cell.weight
            self.weighted += cell.weight * cell.mean

    def standing(self, layer_name: str, ratio: float) -> Standing:
        """What the kind's other layers and its outcomes in this one say of it here.

        The mean of the others has variance ``ratio + 1 / (sum of their weights)`` as a forecast for
        this layer, in noise variances, so it counts as one over that many outcomes.

        Example:
            Twice 1.0 in fc1, four times 0.0 in fc2, ratio 0.25. For fc2, fc1 is worth
            ``1 / (0.25 + 0.25 + 1/2) = 1`` outcome: a mean of 1/5.

            >>> kind = Kind()
            >>> kind.cells = {"fc1": Cell(2.0, 1.0), "fc2": Cell(4.0, 0.0)}
            >>> kind.weigh_all(0.25)
            >>> [round(number, 9) for number in kind.standing("fc2", 0.25)]
            [0.2, 5.0, 4.0, 1]
        """
        own = self.cells.get(layer_name)
        layers = len(self.cells) - (own is not None)
        if not layers:
            return NOTHING if own is None else Standing(own.mean, own.count, own.count, 0)
        if own is None:
            weight = 1 / (ratio + 1 / self.weight)
            return Standing(self.weighted / self.weight, weight, 0.0, layers)
        rest = self.weight - own.weight
        prior = 1 / (ratio + 1 / rest)
        centre = (self.weighted - own.weight * own.mean) / rest
        weight = prior + own.count
        return Standing(own.mean + prior / weight * (centre - own.mean), weight, own.count, layers)


def between(kinds: Mapping[str, Kind], noise: float) -> float:
    """Variance of a kind's mean between layers, in noise variances, by the method of moments.

    The variance of the layers' means is on average that between layers and ``1 / n`` of noise; each
    kind counts as many degrees of freedom as it has layers, less one, and 0.25 counts for 6.

    Example:
        Two layers with one outcome each, 0 and 3, noise 1: a variance of 4.5, of which 1 is noise.

        >>> kind = Kind()
        >>> kind.cells = {"fc1": Cell(1.0, 0.0), "fc2": Cell(1.0, 3.0)}
        >>> between({"Linear/glu": kind}, 1.0)  # (3.5 + 6 * 0.25) / (1 + 6)
        0.7142857142857143
    """
    found, freedom = RATIO * _WEIGHT, _WEIGHT
    for kind in kinds.values():
        layers = len(kind.cells)
        if layers < 2 or not isfinite(noise):
            continue
        cells = kind.cells.values()
        centre = sum([cell.mean for cell in cells]) / layers
        squares = sum([((cell.mean - centre) / noise) ** 2 for cell in cells])
        chance = sum([1 / cell.count for cell in cells]) / layers
        found += squares - (layers - 1) * chance
        freedom += layers - 1
    return max(found / freedom, LEAST)
