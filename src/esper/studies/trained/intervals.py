"""Means and ratios over run seeds, with bootstrap 95 % intervals."""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

_DRAWS = 4000

Array = npt.NDArray[np.float64]
"""One value a run seed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its bootstrap 95 % interval, by percentiles over run seeds.

    Attributes:
        value: The figure; ``None`` where it is not defined: a ratio to a sum that is not > 0.
        low: Lower end; ``None`` for one run seed, or where over 2.5 % of the draws have no value.
        high: Upper end, likewise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, form: str) -> str:
        """Figure and interval in a format; ``-`` where the figure is not defined.

        Example:
            >>> Estimate(value=1.2, low=1.0, high=1.5).text(".2f"), Estimate(value=2.0).text("+.1f")
            ('1.20 [1.00, 1.50]', '+2.0')
        """
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return format(self.value, form)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def mean(values: Array) -> Estimate:
    """Mean over run seeds.

    Example:
        >>> mean(np.array([3.0, 1.0]))
        Estimate(value=2.0, low=1.0, high=3.0)
    """
    return _estimate(float(values.mean()), values[_draws(len(values))].mean(axis=1), len(values))


def ratio(ours: Array, theirs: Array) -> Estimate:
    """Ratio of the sums over run seeds, ours over theirs; seeds are drawn in pairs.

    Example:
        >>> ratio(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
        Estimate(value=2.0, low=1.0, high=3.0)
        >>> ratio(np.array([3.0, 1.0]), np.array([-1.0, 1.0])).value is None
        True
    """
    drawn = _draws(len(ours))
    above, below = ours[drawn].sum(axis=1), theirs[drawn].sum(axis=1)
    values = np.divide(above, below, out=np.full(len(drawn), np.nan), where=below > 0)
    whole = float(theirs.sum())
    return _estimate(float(ours.sum()) / whole if whole > 0 else None, values, len(ours))


def _draws(seeds: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(seeds, size=(_DRAWS, seeds))


def _estimate(value: float | None, drawn: Array, seeds: int) -> Estimate:
    known = drawn[~np.isnan(drawn)]
    if value is None or seeds < 2 or len(known) < 0.975 * len(drawn):
        return Estimate(value=value)
    low, high = np.quantile(known, (0.025, 0.975))
    return Estimate(value=value, low=float(low), high=float(high))
