"""Running sums over the seeds of one layer (count, mean, squared deviations).

A choice needs the layer's centre and scale, which are sums over all of its seeds, but one outcome
changes one seed. So the sums are updated by each outcome in constant time, and recomputed from the
columns every 64 outcomes or where rounding would rule. The moments of recomputing are a function of
the outcomes alone: a run that is resumed has the same sums to the last bit.
"""

from collections.abc import Iterable, Mapping
from math import inf, sqrt
from typing import Any, NamedTuple, final

from esper.contracts.performance import SeedStatistics

_SHRINKAGE = 1.0
"""Degrees of freedom of the total variance in the pooled one."""

ROUNDING = 1e-12
"""A spread below this share of the rewards' size is rounding, not information."""

_ANEW = 64
"""Outcomes after which sums are recomputed in any case."""

_CANCELLED = 1e-6
"""Share of its largest value to which the spread may fall before sums are recomputed."""


class Units(NamedTuple):
    """Centre and scale of a layer: a reward is ``(reward - centre) / scale`` standard deviations.

    Attributes:
        centre: Unweighted mean of the seeds' mean rewards.
        scale: Pooled standard deviation of the rewards, > 0; inf if there is no spread at all.
        outcomes: Outcomes ever in the layer.
    """

    centre: float
    scale: float
    outcomes: int


@final
class LayerSums:
    """Read-only columns over the seeds of one layer, and their `units`.

    Attributes:
        seeds: Seed indices; the other columns are in their order.
        counts: Outcomes inside the window.
        means: Mean reward of the window; 0 if it is empty.
        m2s: Sum of squared deviations from the mean over the window.
        roots: One over the square root of the count; 0 where there is none.
        outcomes: Outcomes ever, of all seeds.
        tried: Number of seeds that have outcomes inside their window.

    Example:
        Two seeds, rewards (1, 3) and (5, 7): within 2 and 2 with 2 degrees of freedom, total
        variance 20/3, so the scale is ``sqrt((4 + 20/3) / 3)``.

        >>> sums = LayerSums()
        >>> for seed in (0, 1):
        ...     sums.insert(seed)
        >>> for at, count, mean, m2 in ((0, 1, 1, 0), (0, 2, 2, 2), (1, 1, 5, 0), (1, 2, 6, 2)):
        ...     sums.put(at, count, mean, m2)
        >>> centre, scale, outcomes = sums.units()
        >>> centre, round(scale, 4), round((32 / 3 / 3) ** 0.5, 4), outcomes
        (4.0, 1.8856, 1.8856, 4)
    """

    __slots__ = (
        "_exact",
        "_left",
        "_origin",
        "_peak",
        "_shifts",
        "_spread",
        "_squares",
        "_total",
        "_weighted",
        "_within",
        "counts",
        "m2s",
        "means",
        "outcomes",
        "roots",
        "seeds",
        "tried",
    )

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.counts: list[int] = []
        self.means: list[float] = []
        self.m2s: list[float] = []
        self.roots: list[float] = []
        self.outcomes = 0
        self.tried = 0
        self._exact = False
        self._left = _ANEW
        # Deviations from the origin; "weighted" and "squares" are weighted with counts.
        self._total = 0
        self._origin = self._within = self._peak = 0.0
        self._shifts = self._weighted = self._squares = self._spread = 0.0

    def insert(self, seed_idx: int) -> None:
        """Insert a seed without outcomes, in the order of seeds."""
        at = len(self.seeds)
        while at and self.seeds[at - 1] > seed_idx:
            at -= 1
        self.seeds.insert(at, seed_idx)
        self.counts.insert(at, 0)
        self.means.insert(at, 0.0)
        self.m2s.insert(at, 0.0)
        self.roots = [*self.roots[:at], 0.0, *self.roots[at:]]

    def replace(self, seeds: Iterable[int], rows: Iterable[SeedStatistics]) -> None:
        """Replace the columns; the sums stay if only seeds without outcomes differ."""
        before = self._rows()
        rows = list(rows)
        self.seeds = list(seeds)
        self.counts = [row.count for row in rows]
        self.means = [row.mean for row in rows]
        self.m2s = [row.m2 for row in rows]
        self.roots = [row.count and row.count**-0.5 for row in rows]
        self.outcomes = sum([row.outcomes for row in rows])
        if before != self._rows():
            # A resumed run may change a seed's blueprint at another moment: recompute from now on.
            self._exact = self._exact or bool(before)
            self._recompute()

    def put(self, at: int, count: int, mean: float, m2: float) -> None:
        """Update row ``at`` after one outcome of its seed, whose window is now as given."""
        counts, means, m2s, origin = self.counts, self.means, self.m2s, self._origin
        before, was, had = counts[at], means[at] - origin, m2s[at]
        counts[at] = count
        means[at] = mean
        m2s[at] = m2
        if count != before:
            # A copy: a caller may keep the list that it was given.
            self.roots = [*self.roots[:at], count**-0.5, *self.roots[at + 1 :]]
        self.outcomes += 1
        self._left = left = self._left - 1
        if left <= 0 or not before:
            self._recompute()
            return
        now = mean - origin
        change = now - was
        self._within = within = self._within + (m2 - had)
        self._shifts += change
        if count == before:
            total = self._total
            self._weighted = weighted = self._weighted + count * change
            self._squares = squares = self._squares + count * (change * (now + was))
        else:
            self._total = total = self._total + count - before
            self._weighted = weighted = self._weighted + (count * now - before * was)
            self._squares = squares = self._squares + (count * now * now - before * was * was)
        most = within + squares
        self._peak = max(self._peak, most)
        self._spread = spread = most - weighted * weighted / total
        if spread < _CANCELLED * self._peak:
            self._recompute()

    def units(self) -> tuple[float, float, int]:
        """`Units`, as a plain tuple."""
        total, origin, tried = self._total, self._origin, self.tried
        if total < 2:
            return origin, inf, self.outcomes
        pooled = self._within + _SHRINKAGE * self._spread / (total - 1)
        scale = sqrt(pooled / (total - tried + _SHRINKAGE)) if pooled > 0.0 else inf
        if scale <= ROUNDING * abs(origin):
            scale = inf
        return origin + self._shifts / tried, scale, self.outcomes

    def state_dict(self) -> dict[str, Any]:
        """Columns and sums to the last bit, as JSON data."""
        state = {slot: getattr(self, slot) for slot in self.__slots__}
        return {name: list(one) if isinstance(one, list) else one for name, one in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for slot in self.__slots__:
            value = state[slot]
            setattr(self, slot, list(value) if isinstance(value, list) else value)

    def _rows(self) -> list[tuple[int, int, float, float]]:
        columns = zip(self.seeds, self.counts, self.means, self.m2s, strict=True)
        return [row for row in columns if row[1]]

    def _recompute(self) -> None:
        rows = self._rows()
        # Deviations from one of the means: equal rewards then differ by exactly nothing.
        origin = rows[0][2] if rows else 0.0
        within = shifts = weighted = squares = 0.0
        total = 0
        for _, count, mean, m2 in rows:
            shift = mean - origin
            within += m2
            total += count
            shifts += shift
            weighted += count * shift
            squares += count * shift * shift
        self.tried = len(rows)
        self._origin, self._total, self._within = origin, total, within
        self._shifts, self._weighted, self._squares = shifts, weighted, squares
        self._peak, self._left = within + squares, 0 if self._exact else _ANEW
        self._spread = within + squares - (weighted * weighted / total if total else 0.0)
