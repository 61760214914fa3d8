"""What strategies learn of a layer whose rewards do not stay what they were.

One array of doubles per layer: the layer's own numbers, then a row per seed in the order of seeds.
Of eight seeds that is some 450 bytes where a row has three numbers; an outcome costs constant time.
"""

from abc import ABC
from array import array
from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import Any, ClassVar, TypeVar

from typing_extensions import override

from esper.contracts.errors import ConfigError, SelectionError
from esper.records.draws import Draws
from esper.records.layer import LayerKnowledge
from esper.records.layer_sums import ROUNDING
from esper.strategies.base import Metrics
from esper.strategies.scoring import TIE, pick_best

_HEAD = 6
_OUTCOMES, _WEIGHT, _MEAN, _M2, _NOISE, _FREEDOM = range(_HEAD)

_MEMORY = 1000.0
"""Outcomes after which the layer's spread and noise begin to forget."""

_WARM = 8
"""Surprises after which a large one is cut."""

_CUT = 100.0
"""What a squared surprise may be at most, in variances. Less, and rewards that are mostly zero look
less noisy than they are, for ever."""

_LEAST = 1e-6
"""Fewer trials than this are no fewer, so that bounds stay finite."""


class Learned(LayerKnowledge, ABC):
    """Numbers of a layer and of its seeds, and how far apart rewards are.

    The first number of a row is the seed, the rest is the business of whoever derives from this.

    Attributes:
        cells: All numbers.
    """

    __slots__ = ("cells",)

    width: ClassVar[int]
    """Numbers in a row, the seed included."""

    def __init__(self) -> None:
        self.cells = array("d", [0.0] * _HEAD)

    @property
    def outcomes(self) -> int:
        """Outcomes ever in the layer."""
        return int(self.cells[_OUTCOMES])

    @property
    def surprises(self) -> int:
        """Outcomes of seeds that were tried before, as far as they are remembered."""
        return int(self.cells[_FREEDOM])

    @property
    def centre(self) -> float:
        """Mean of the layer's rewards, of late."""
        return self.cells[_MEAN]

    def row(self, seed_idx: int) -> int:
        """Where the row of a seed begins; 0 if there is none."""
        cells, width = self.cells, self.width
        start = _HEAD + seed_idx * width  # right if no seed is missing
        if start < len(cells) and cells[start] == seed_idx:
            return start
        for start in range(_HEAD, len(cells), width):
            if cells[start] == seed_idx:
                return start
        return 0

    def place(self, seed_idx: int) -> int:
        """Where the row of a seed begins; a row of zeros is made if there is none."""
        start = self.row(seed_idx)
        if not start:
            start = _HEAD
            while start < len(self.cells) and self.cells[start] < seed_idx:
                start += self.width
            self.cells[start:start] = array("d", [seed_idx] + [0.0] * (self.width - 1))
        return start

    def rows(self) -> Iterator[int]:
        """Where the rows begin, in the order of seeds."""
        return iter(range(_HEAD, len(self.cells), self.width))

    @override
    def forget(self, seed_idx: int) -> None:
        start = self.row(seed_idx)
        if start:
            del self.cells[start : start + self.width]

    def count(self, reward: float) -> float:
        """Take a reward into the spread of all; gives its distance from the mean before."""
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
        return off

    def surprise(self, off: float, known: float) -> None:
        """Take in how far a reward was off the mean of ``known`` earlier ones of its seed."""
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
        """Standard deviation of all rewards of late; inf if they do not differ."""
        return self._usable(self._total())

    @override
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as JSON data."""
        return {"cells": self.cells.tolist()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked.

        Raises:
            ConfigError: if ``state`` is another strategy's.
        """
        cells = numbers(state, "cells")
        if len(cells) < _HEAD or (len(cells) - _HEAD) % self.width:
            raise ConfigError(
                f"state['cells'] has {len(cells)} numbers; it must have {_HEAD}, and {self.width} "
                "for each seed; the state belongs to another strategy, or to other settings"
            )
        self.cells = cells

    def _total(self) -> float:
        weight = self.cells[_WEIGHT]
        return max(self.cells[_M2], 0.0) / (weight - 1) if weight > 1 else 0.0

    def _variance(self) -> float:
        cells = self.cells
        return (max(cells[_NOISE], 0.0) + self._total()) / (cells[_FREEDOM] + 1)

    def _usable(self, variance: float) -> float:
        scale = sqrt(variance)
        return scale if scale > ROUNDING * abs(self.cells[_MEAN]) else inf


Kind = TypeVar("Kind", bound=LayerKnowledge)


def learned_as(kind: type[Kind], knowledge: LayerKnowledge) -> Kind:
    """The knowledge, which must be of one kind.

    Raises:
        SelectionError: if another strategy made it.
    """
    if not isinstance(knowledge, kind):
        raise SelectionError(
            f"the tracker learns {type(knowledge).__name__} for another strategy, but "
            f"{kind.__name__} is needed; give each strategy a tracker of its own"
        )
    return knowledge


def require_whole(setting: str, value: object, least: int) -> None:
    """Refuse a setting that is no whole number or too small.

    Raises:
        ConfigError: naming the setting, its value and what it may be.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{setting} is {value!r}; it must be a whole number >= {least}")


def numbers(state: Mapping[str, Any], key: str) -> "array[float]":
    """A list of finite numbers out of a state.

    Raises:
        ConfigError: if it is missing or something else.
    """
    values = state.get(key)
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and isfinite(value) for value in values
    ):
        raise ConfigError(f"state[{key!r}] is {values!r}; it must be a list of finite numbers")
    return array("d", values)


def standing(
    viable: Sequence[int],
    metrics: Metrics,
    known: Mapping[int, tuple[float, float]],
    noise: float,
) -> dict[int, tuple[float, float]]:
    """Standardised mean and trials of each of ``viable``, choices without outcome included.

    A choice whose outcome has not come counts as a trial that gave the seed's own mean. Choices of
    a seed that never led to an outcome count too, so that it does not hold up the others.

    Args:
        viable: Seeds.
        metrics: Their records.
        known: Trials that still count, and mean reward of them, of the seeds that have any.
        noise: The unit of the result, as of `Learned.noise`.

    Example:
        >>> standing([0, 1, 2], {}, {0: (4.0, 1.0), 1: (2.0, 3.0)}, 0.5)
        {0: (-2.0, 4.0), 1: (2.0, 2.0), 2: (0.0, 0.0)}
    """
    means = [mean for _, mean in known.values()]
    origin = means[0] if means else 0.0
    # Deviations from one of the means: equal rewards then differ by exactly nothing.
    centre = origin + sum([mean - origin for mean in means]) / max(len(means), 1)
    found = {}
    for seed in viable:
        record = metrics.get(seed)
        weight, mean = known.get(seed, (0.0, centre))
        if record is None:
            trials = weight
        elif weight:
            trials = weight + record.pending
        else:
            trials = max(record.pending, record.total_activations - record.outcomes)
        found[seed] = ((mean - centre) / noise, trials)
    return found


def waiting(metrics: Metrics) -> int:
    """Choices of the layer whose outcome has not come."""
    return sum([record.pending for record in metrics.values()])


def upper_bounds(standings: Mapping[int, tuple[float, float]], width: float) -> dict[int, float]:
    """``z + sqrt(width / trials)``; infinite where there are no trials.

    Example:
        >>> upper_bounds({0: (-2.0, 4.0), 1: (2.0, 0.0)}, 16.0)
        {0: 0.0, 1: inf}
    """
    return {
        seed: z + sqrt(width / max(trials, _LEAST)) if trials else inf
        for seed, (z, trials) in standings.items()
    }


def draw_best(scores: Mapping[int, float], rng: Draws) -> tuple[int, dict[int, float]]:
    """The seed of the highest score, ties drawn, and the probability of every seed.

    Example:
        >>> draw_best({4: 0.5, 7: 0.7}, Draws(0, "fc1", 0))
        (7, {4: 0.0, 7: 1.0})
    """
    chosen, _ = pick_best(scores, rng)
    least = max(scores.values()) - TIE
    tied = [seed for seed, score in scores.items() if score >= least]
    return chosen, {seed: 1 / len(tied) if seed in tied else 0.0 for seed in scores}
