"""Mean paths: the mean reward of every arm at every step of a run."""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Table = npt.NDArray[np.float64]


class MeanPath(ABC):
    """Source of the mean reward of every arm at every step."""

    @abstractmethod
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        """Draw the mean rewards, (steps, arms).

        Args:
            generator: The only randomness.
            run: Number of the run, for a path that takes turns over runs.
            steps: Length of the run, >= 1.
        """


@final
@dataclass(frozen=True, slots=True)
class Constant(MeanPath):
    """Constant means, permuted over the arms."""

    levels: tuple[float, ...]

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        return np.tile(generator.permutation(np.asarray(self.levels)), (steps, 1))


@final
@dataclass(frozen=True, slots=True)
class InTurn(MeanPath):
    """Constant means; arm ``run % arms`` has the first level, the others are permuted."""

    levels: tuple[float, ...]

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        rest = generator.permutation(np.asarray(self.levels[1:]))
        return np.tile(np.insert(rest, run % len(self.levels), self.levels[0]), (steps, 1))


@final
@dataclass(frozen=True, slots=True)
class Permuted(MeanPath):
    """Means permuted anew every ``every`` steps; each time another arm is the best."""

    levels: tuple[float, ...]
    every: int

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        lengths = [self.every] * -(-steps // self.every)
        return _segments(generator, np.asarray(self.levels), lengths, steps)


@final
@dataclass(frozen=True, slots=True)
class PermutedIrregularly(MeanPath):
    """As `Permuted`, after ``least`` steps and an exponential number, ``more`` on average."""

    levels: tuple[float, ...]
    least: int
    more: float

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        lengths: list[int] = []
        while sum(lengths) < steps:
            lengths.append(self.least + int(generator.exponential(self.more)))
        return _segments(generator, np.asarray(self.levels), lengths, steps)


@final
@dataclass(frozen=True, slots=True)
class OneArmChanges(MeanPath):
    """Constant means, except for one arm that changes once.

    Attributes:
        levels: Mean rewards before.
        rank: Rank of that arm, counted from the worst, 0, or the best, -1.
        to: Mean reward of it afterwards.
        after: Share of the run after which it changes, in (0, 1).
    """

    levels: tuple[float, ...]
    rank: int
    to: float
    after: float

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        levels = generator.permutation(np.asarray(self.levels))
        table = np.tile(levels, (steps, 1))
        table[int(steps * self.after) :, np.argsort(levels)[self.rank]] = self.to
        return table


@final
@dataclass(frozen=True, slots=True)
class Sinusoidal(MeanPath):
    """Sinusoids, each arm with another phase and period.

    Attributes:
        arms: Number of arms.
        level: Mean of every sinusoid.
        swing: Amplitude.
        periods: Least and most steps of a period.
    """

    arms: int
    level: float
    swing: float
    periods: tuple[float, float]

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        periods = generator.uniform(*self.periods, self.arms)
        turns = np.arange(steps)[:, None] / periods + generator.random(self.arms)
        return np.asarray(self.level + self.swing * np.sin(2 * np.pi * turns))


@final
@dataclass(frozen=True, slots=True)
class RandomWalk(MeanPath):
    """Random walks that begin ``start_sd`` apart and move ``step_sd`` a step."""

    arms: int
    start_sd: float
    step_sd: float

    @override
    def means(self, generator: np.random.Generator, run: int, steps: int) -> Table:
        start = generator.normal(0.0, self.start_sd, self.arms)
        return start + np.cumsum(generator.normal(0.0, self.step_sd, (steps, self.arms)), axis=0)


def _segments(
    generator: np.random.Generator, levels: Table, lengths: list[int], steps: int
) -> Table:
    """Segments of these lengths, cut off after ``steps``; neighbours differ in their best arm."""
    best, rows = -1, []
    for length in lengths:
        row = generator.permutation(levels)
        while row.argmax() == best:
            row = generator.permutation(levels)
        best = int(row.argmax())
        rows.append(np.tile(row, (length, 1)))
    return np.concatenate(rows)[:steps]


@final
@dataclass(frozen=True, slots=True)
class Fading:
    """Factor on all rewards of a run, as gains shrink while a network learns.

    Attributes:
        factor: What rewards are multiplied by every ``every`` steps, in (0, 1].
        every: Steps, >= 1.
        smooth: A little at each step instead.

    Example:
        >>> Fading(0.5, every=2).factors(5).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    factor: float
    _: KW_ONLY
    every: int
    smooth: bool = False

    def factors(self, steps: int) -> Table:
        """Factor of each step, (steps,)."""
        times = np.arange(steps) / self.every
        factors: Table = self.factor ** (times if self.smooth else np.floor(times))
        return factors
