"""Running moments of a layer's rewards and a row of numbers per seed, in one array of doubles.

The layer's own numbers come first, then the rows in the order of seeds. Of eight seeds that is some
450 bytes where a row has three numbers; an outcome costs constant time.
"""

from abc import ABC
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from math import inf, isfinite, sqrt
from typing import Any, ClassVar

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.records.layer import LayerKnowledge
from esper.records.layer_sums import ROUNDING

_HEAD = 6
_OUTCOMES, _WEIGHT, _MEAN, _M2, _NOISE, _FREEDOM = range(_HEAD)

_MEMORY = 1000.0
"""Outcomes after which the layer's spread and noise begin to forget."""

_WARM = 8
"""Surprises after which a large one is clipped."""

_CUT = 100.0
"""Limit of a squared surprise, in variances. With a lower one, rewards that are mostly zero look
less noisy than they are, for ever."""


class Learned(LayerKnowledge, ABC):
    """Moments of a layer's rewards, and rows of numbers per seed that subclasses define.

    The first number of a row is the seed. A *surprise* is an outcome's distance from the mean of
    its seed's earlier outcomes.

    Attributes:
        cells: All numbers.
    """

    __slots__ = ("cells",)

    width: ClassVar[int]
    """Numbers of a row, the seed included."""

    def __init__(self) -> None:
        self.cells = array("d", [0.0] * _HEAD)

    @property
    def outcomes(self) -> int:
        """Outcomes ever in the layer."""
        return int(self.cells[_OUTCOMES])

    @property
    def surprises(self) -> int:
        """Number of surprises, at most 1,000."""
        return int(self.cells[_FREEDOM])

    @property
    def centre(self) -> float:
        """Mean of the layer's last 1,000 rewards or so."""
        return self.cells[_MEAN]

    def row(self, seed_idx: int) -> int:
        """Index at which the row of a seed begins; 0 if there is none."""
        start = self._from(seed_idx)
        return start if start < len(self.cells) and self.cells[start] == seed_idx else 0

    def place(self, seed_idx: int) -> int:
        """Index at which the row of a seed begins; a row of zeros is made if there is none."""
        start = self._from(seed_idx)
        if start == len(self.cells) or self.cells[start] != seed_idx:
            self.cells[start:start] = array("d", [seed_idx] + [0.0] * (self.width - 1))
        return start

    def rows(self) -> range:
        """Indices at which the rows begin, in the order of seeds."""
        return range(_HEAD, len(self.cells), self.width)

    @override
    def forget(self, seed_idx: int) -> None:
        if start := self.row(seed_idx):
            del self.cells[start : start + self.width]

    def add_reward(self, reward: float) -> None:
        """Add a reward to the layer's mean and spread."""
        cells = self.cells
        cells[_OUTCOMES] += 1
        weight = cells[_WEIGHT]
        off = reward - cells[_MEAN] if weight else 0.0
        if weight < _MEMORY:
            cells[_WEIGHT] = weight = weight + 1
        else:
            cells[_M2] -= cells[_M2] / weight
        cells[_MEAN] = cells[_MEAN] + off / weight if weight > 1 else reward
        cells[_M2] += off * (reward - cells[_MEAN])

    def add_surprise(self, off: float, known: float) -> None:
        """Add a reward's distance ``off`` from the mean of ``known`` earlier ones of its seed."""
        cells = self.cells
        square = off * off / (1 + 1 / max(known, 1.0))
        if cells[_FREEDOM] >= _WARM:
            square = min(square, _CUT * self._variance() or square)
        if cells[_FREEDOM] < _MEMORY:
            cells[_FREEDOM] += 1
        else:
            cells[_NOISE] -= cells[_NOISE] / _MEMORY
        cells[_NOISE] += square

    def noise(self) -> float:
        """Standard deviation of a reward about its seed's mean; inf if rewards do not differ.

        ``sqrt((sum of squared surprises + total variance) / (surprises + 1))``: while few seeds
        were tried twice it leans on the spread of all rewards.
        """
        return self._usable(self._variance())

    def spread(self) -> float:
        """Standard deviation of the layer's rewards; inf if they do not differ."""
        return self._usable(self._total())

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"cells": self.cells.tolist()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        cells = numbers(state, "cells")
        if len(cells) < _HEAD or (len(cells) - _HEAD) % self.width:
            raise ConfigError(
                f"state['cells'] has {len(cells)} numbers; it must have {_HEAD}, and {self.width} "
                "for each seed; the state belongs to another strategy, or to other settings"
            )
        self.cells = cells

    def _from(self, seed_idx: int) -> int:
        """Index of the first row whose seed is not below this one; the end if there is none."""
        cells = self.cells
        start = _HEAD + seed_idx * self.width  # right if no seed is missing
        if start < len(cells) and cells[start] == seed_idx:
            return start
        before = bisect_left(self.rows(), float(seed_idx), key=lambda place: cells[place])
        return _HEAD + self.width * before

    def _total(self) -> float:
        weight = self.cells[_WEIGHT]
        return max(self.cells[_M2], 0.0) / (weight - 1) if weight > 1 else 0.0

    def _variance(self) -> float:
        cells = self.cells
        return (max(cells[_NOISE], 0.0) + self._total()) / (cells[_FREEDOM] + 1)

    def _usable(self, variance: float) -> float:
        scale = sqrt(variance)
        return scale if scale > ROUNDING * abs(self.cells[_MEAN]) else inf


def numbers(state: Mapping[str, Any], key: str) -> "array[float]":
    """Array of the finite numbers in a state's list.

    Raises:
        ConfigError: if the list is missing or holds anything else.
    """
    values = state.get(key)
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and isfinite(value) for value in values
    ):
        raise ConfigError(f"state[{key!r}] is {values!r}; it must be a list of finite numbers")
    return array("d", values)
