"""Correlated draws of several seeds, and the probability that each is the highest.

Shapes: K seeds, N draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import final

import numpy as np

from esper.records.draws import Draws
from esper.strategies.contextual.ridge import Array

_DRAWS = 2**15


@final
@dataclass(frozen=True, slots=True)
class JointDraw:
    """Probability of every seed that its draw is the highest, for correlated draws; a `Chances`.

    Monte Carlo over 32,768 draws of a fixed generator; equal posteriors give equal answers.

    Attributes:
        seeds: The seeds.
        means: Mean of each one's draw.
        factor: Lower triangular factor of the draws' covariance, row by row.

    Example:
        Two independent draws, the second 1 sd of their difference ahead: Phi(1) = 0.841.

        >>> chance = JointDraw((0, 1), (0.0, 2**0.5), ((1.0, 0.0), (0.0, 1.0)))
        >>> abs(chance.of(1) - 0.841) < chance.error
        True
    """

    seeds: tuple[int, ...]
    means: tuple[float, ...]
    factor: tuple[Sequence[float], ...]

    @property
    def error(self) -> float:
        """Four standard errors of a probability of one half, or 0 for a seed that is alone."""
        return 2.0 / sqrt(_DRAWS) if len(self.seeds) > 1 else 0.0

    def of(self, seed_idx: int) -> float:
        """Probability that the draw of ``seed_idx`` is the highest, in (0, 1]."""
        return self.all()[seed_idx]

    def all(self) -> dict[int, float]:
        """Probability of every seed."""
        count = len(self.seeds)
        draws_NK = _normals(count) @ np.array(self.factor).T + np.array(self.means)
        wins = np.bincount(draws_NK.argmax(axis=1), minlength=count).tolist()
        # Half a draw for each seed, so that one that never came up is not impossible.
        return {
            seed: (won + 0.5) / (_DRAWS + 0.5 * count)
            for seed, won in zip(self.seeds, wins, strict=True)
        }


@lru_cache(maxsize=4)
def _normals(count: int) -> Array:
    return np.random.default_rng(0).standard_normal((_DRAWS, count))


def draw_together(
    seeds: Sequence[int], means: Sequence[float], factor_KK: Array, rng: Draws
) -> tuple[dict[int, float], JointDraw]:
    """One draw of every seed, and the probability that each is the highest.

    Args:
        seeds: The seeds.
        means: Mean of each one's draw.
        factor_KK: Factor of their covariance, by `factor_of`.
        rng: The only randomness.
    """
    standard_K = np.array([rng.normal(0.0, 1.0) for _ in seeds])
    draws_K = factor_KK @ standard_K + np.array(means)
    chance = JointDraw(tuple(seeds), tuple(means), tuple(map(tuple, factor_KK.tolist())))
    return dict(zip(seeds, draws_K.tolist(), strict=True)), chance


def factor_of(covariance_KK: Array) -> Array:
    """Cholesky factor of a covariance that may be singular by rounding."""
    size = len(covariance_KK)
    covariance_KK = (covariance_KK + covariance_KK.T) / 2
    slack = 1e-12 * float(covariance_KK.trace()) + 1e-300
    while True:
        try:
            return np.asarray(np.linalg.cholesky(covariance_KK + slack * np.eye(size)), dtype=float)
        except np.linalg.LinAlgError:
            slack *= 100
