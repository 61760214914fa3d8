"""Distributions of the rewards around their means."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Table = npt.NDArray[np.float64]


class Noise(ABC):
    """Distribution of independent rewards with given means."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        """Draw rewards of the shape of ``means``, (steps, arms)."""


@final
@dataclass(frozen=True, slots=True)
class Bernoulli(Noise):
    """Reward 1 with the probability ``mean``, else 0."""

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        return (generator.random(means.shape) < means).astype(np.float64)


@final
@dataclass(frozen=True, slots=True)
class Gaussian(Noise):
    """Normal rewards of standard deviation ``sd``."""

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
    """Exponential noise less its mean, of standard deviation ``sd``."""

    sd: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        return means + self.sd * (generator.exponential(1.0, means.shape) - 1.0)


@final
@dataclass(frozen=True, slots=True)
class Sparse(Noise):
    """Rewards of 0, except for a share of them, which are exponential."""

    share: float

    @override
    def draw(self, generator: np.random.Generator, means: Table) -> Table:
        hit = generator.random(means.shape) < self.share
        rewards: Table = generator.exponential(1.0, means.shape) * means / self.share
        rewards[~hit] = 0.0
        return rewards
