"""What rewards look like around their means."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Table = npt.NDArray[np.float64]


class Noise(ABC):
    """Draws a reward for every mean; independent, and the means are the rewards' means."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        """Rewards, of the shape of ``means``, (steps, arms)."""


@final
@dataclass(frozen=True, slots=True)
class Bernoulli(Noise):
    """1 with the mean's probability, else 0."""

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        return (generator.random(means.shape) < means).astype(np.float64)


@final
@dataclass(frozen=True, slots=True)
class Gaussian(Noise):
    """Normal, of standard deviation ``sd``."""

    sd: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        return means + self.sd * generator.standard_normal(means.shape)


@final
@dataclass(frozen=True, slots=True)
class StudentT(Noise):
    """Student-t with ``freedom`` degrees of freedom, > 2, scaled to standard deviation ``sd``."""

    sd: float
    freedom: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        unit = sqrt(self.freedom / (self.freedom - 2))
        return means + self.sd / unit * generator.standard_t(self.freedom, means.shape)


@final
@dataclass(frozen=True, slots=True)
class Skewed(Noise):
    """Exponential less its mean, of standard deviation ``sd``."""

    sd: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        return means + self.sd * (generator.exponential(1.0, means.shape) - 1.0)


@final
@dataclass(frozen=True, slots=True)
class Sparse(Noise):
    """0, except for a share of the rewards, which are exponential."""

    share: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        hit = generator.random(means.shape) < self.share
        rewards: Table = generator.exponential(1.0, means.shape) * means / self.share
        rewards[~hit] = 0.0
        return rewards
